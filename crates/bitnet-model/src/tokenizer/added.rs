//! Tokens that are cut out of the text before anything else: control tokens and words added after training.

use aho_corasick::{AhoCorasick, MatchKind};

use super::Special;

/// A token that is matched as plain text.
#[derive(Clone, Debug)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) text: String,
    /// Control tokens are looked for in templates only, never in what a user typed.
    pub(super) special: bool,
    /// Only between characters that do not belong to a word.
    pub(super) single_word: bool,
    /// Swallows the white space before it.
    pub(super) lstrip: bool,
    /// Swallows the white space after it.
    pub(super) rstrip: bool,
}

impl AddedToken {
    pub(super) fn control(id: u32, text: &str) -> Self {
        Self {
            id,
            text: text.into(),
            special: true,
            single_word: false,
            lstrip: false,
            rstrip: false,
        }
    }
}

/// A stretch of text, or a token that stood in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece<'t> {
    Text(&'t str),
    Token(u32),
}

/// All such tokens of a vocabulary.
#[derive(Debug)]
pub(super) struct AddedTokens {
    tokens: Vec<AddedToken>,
    /// How many of `tokens`, from the front, are not special.
    plain: usize,
    find_plain: Option<AhoCorasick>,
    find_all: Option<AhoCorasick>,
}

impl AddedTokens {
    /// No text may be empty.
    pub(super) fn new(mut tokens: Vec<AddedToken>) -> Result<Self, aho_corasick::BuildError> {
        tokens.sort_by_key(|token| token.special);
        let plain = tokens.iter().filter(|token| !token.special).count();
        let (find_plain, find_all) = (finder(&tokens[..plain])?, finder(&tokens)?);
        Ok(Self { tokens, plain, find_plain, find_all })
    }

    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.tokens.iter().find(|token| token.text == text).map(|token| token.id)
    }

    pub(super) fn specials(&self) -> &[AddedToken] {
        &self.tokens[self.plain..]
    }

    /// Cuts `text` at its tokens, the leftmost and there the longest first.
    pub(super) fn split<'t>(&self, text: &'t str, special: Special) -> Vec<Piece<'t>> {
        let finder = match special {
            Special::Text => &self.find_plain,
            Special::Template => &self.find_all,
        };
        let (mut pieces, mut done) = (Vec::new(), 0);
        for found in finder.iter().flat_map(|finder| finder.find_iter(text)) {
            let token = &self.tokens[found.pattern()];
            let (mut start, mut end) = (found.start(), found.end());
            // White space that an earlier token swallowed may be part of this match.
            if start < done || (token.single_word && !stands_alone(text, start, end)) {
                continue;
            }
            if token.lstrip {
                start = done + text[done..start].trim_end().len();
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            pieces.extend((start > done).then(|| Piece::Text(&text[done..start])));
            pieces.push(Piece::Token(token.id));
            done = end;
        }
        pieces.extend((done < text.len()).then(|| Piece::Text(&text[done..])));
        pieces
    }
}

fn finder(tokens: &[AddedToken]) -> Result<Option<AhoCorasick>, aho_corasick::BuildError> {
    let texts = tokens.iter().map(|token| &token.text);
    let builder = || AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts);
    (!tokens.is_empty()).then(builder).transpose()
}

fn stands_alone(text: &str, start: usize, end: usize) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    !text[..start].ends_with(is_word) && !text[end..].starts_with(is_word)
}

#[cfg(test)]
mod tests {
    use super::Piece::{Text, Token};
    use super::*;

    fn tokens() -> AddedTokens {
        let strip = AddedToken { lstrip: true, rstrip: true, ..AddedToken::control(3, "<mask>") };
        let word =
            AddedToken { special: false, single_word: true, ..AddedToken::control(4, "word") };
        AddedTokens::new(vec![
            AddedToken::control(1, "<s>"),
            AddedToken::control(2, "<s>>"),
            strip,
            word,
        ])
        .unwrap()
    }

    #[track_caller]
    fn check(text: &str, special: Special, expected: &[Piece]) {
        assert_eq!(tokens().split(text, special), expected);
    }

    #[test]
    fn the_longest_token_wins() {
        check("a<s>>b<s>", Special::Template, &[Text("a"), Token(2), Text("b"), Token(1)]);
    }

    #[test]
    fn text_of_a_user_is_cut_at_plain_tokens_only() {
        check("<s> word", Special::Text, &[Text("<s> "), Token(4)]);
    }

    #[test]
    fn a_single_word_token_does_not_match_inside_a_word() {
        check("words word", Special::Text, &[Text("words "), Token(4)]);
    }

    #[test]
    fn white_space_goes_to_tokens_that_ask_for_it() {
        check("a <mask>  <mask> b", Special::Template, &[Text("a"), Token(3), Token(3), Text("b")]);
    }

    #[test]
    fn empty_text_has_no_pieces() {
        check("", Special::Template, &[]);
    }
}
