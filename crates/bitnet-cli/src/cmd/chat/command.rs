//! What a line that starts with a slash asks for.

use crate::report::Table;

/// A command of the chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Help,
    Clear,
    System(Option<String>),
    Undo,
    Regenerate,
    Save(String),
    /// A setting's name and value; none asks for all.
    Set(Option<(String, String)>),
    Stats,
    Exit,
}

/// For `/help`.
const COMMANDS: [(&str, &str); 9] = [
    ("/help", "this list"),
    ("/clear", "forget the conversation, keep the system message"),
    ("/system [TEXT]", "show or set the system message"),
    ("/undo", "take back the last exchange"),
    ("/regen", "answer the last turn again"),
    ("/save FILE", "write the conversation to a file, as JSON if it ends in .json"),
    ("/set [NAME VALUE]", "show or change how tokens are chosen"),
    ("/stats", "context used and speed of the last answer"),
    ("/exit", "leave"),
];

pub fn help() -> String {
    let mut table = Table::facts();
    COMMANDS.iter().for_each(|(name, what)| table.row([*name, *what]));
    table.row(["line \\", "goes on in the next line"]);
    table.row(["\"\"\"", "starts and ends a text of several lines"]);
    table.render("").trim_end().to_owned()
}

impl Command {
    /// The command in a text, or what is wrong with it; none if the text is a turn of the conversation.
    pub fn parse(text: &str) -> Option<Result<Self, String>> {
        let (name, rest) = match text.strip_prefix('/')?.split_once(char::is_whitespace) {
            Some((name, rest)) => (name, rest.trim()),
            None => (text[1..].trim(), ""),
        };
        let argument = (!rest.is_empty()).then(|| rest.to_owned());
        Some(match (name, argument) {
            ("system", text) => Ok(Self::System(text)),
            ("set", setting) => setting.map(|text| setting_of(&text)).transpose().map(Self::Set),
            ("save", Some(file)) => Ok(Self::Save(file)),
            ("save", None) => Err("/save needs the name of a file".to_owned()),
            ("help" | "?", None) => Ok(Self::Help),
            ("clear", None) => Ok(Self::Clear),
            ("undo", None) => Ok(Self::Undo),
            ("regen", None) => Ok(Self::Regenerate),
            ("stats", None) => Ok(Self::Stats),
            ("exit" | "quit" | "bye", None) => Ok(Self::Exit),
            (
                "help" | "?" | "clear" | "undo" | "regen" | "stats" | "exit" | "quit" | "bye",
                Some(rest),
            ) => Err(format!("/{name} takes nothing after it, found `{rest}`")),
            _ => Err(format!(
                "/{name} is no command; /help lists them, and a blank before the slash makes it text"
            )),
        })
    }
}

fn setting_of(text: &str) -> Result<(String, String), String> {
    match text.split_once(char::is_whitespace) {
        Some((name, value)) => Ok((name.to_owned(), value.trim().to_owned())),
        None => Err(format!("/set {text} needs a value; /set alone shows all settings")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Command) {
        assert_eq!(Command::parse(text), Some(Ok(expected)));
    }

    #[test]
    fn commands_are_read() {
        check("/help", Command::Help);
        check("/system", Command::System(None));
        check("/system Be brief.\nVery.", Command::System(Some("Be brief.\nVery.".into())));
        check("/save my chat.txt ", Command::Save("my chat.txt".into()));
        check("/set top-k  3", Command::Set(Some(("top-k".into(), "3".into()))));
        check("/set", Command::Set(None));
        check("/regen ", Command::Regenerate);
        check("/quit", Command::Exit);
    }

    #[test]
    fn texts_are_no_commands() {
        for text in ["hello", " /help", "a /help", ""] {
            assert_eq!(Command::parse(text), None);
        }
    }

    #[test]
    fn wrong_commands_say_what_is_wrong() {
        let error = |text| Command::parse(text).unwrap().unwrap_err();
        assert!(error("/hlep").starts_with("/hlep is no command"));
        assert!(error("/").starts_with("/ is no command"));
        assert!(error("/save").contains("name of a file"));
        assert!(error("/set seed").contains("needs a value"));
        assert!(error("/clear all").contains("found `all`"));
    }

    #[test]
    fn every_command_of_the_help_exists() {
        for (name, _) in COMMANDS {
            let name = name.split(' ').next().unwrap();
            let parsed = Command::parse(name)
                .unwrap()
                .or_else(|_| Command::parse(&format!("{name} x")).unwrap());
            assert!(parsed.is_ok(), "{name}");
        }
    }
}
