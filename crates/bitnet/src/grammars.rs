//! The grammars of a model: its tokens arranged for them, once, and those that were read last.

#[cfg(feature = "grammar")]
mod kept {
    use std::collections::VecDeque;
    use std::sync::{Mutex, OnceLock, PoisonError};

    use bitnet_inference::grammar::Vocabulary;
    use bitnet_inference::{Constraint, FormatError, ResponseFormat};
    use bitnet_model::tokenizer::Tokenizer;

    /// Grammars that are kept: those that a few programs use again and again.
    const KEPT: usize = 16;

    /// The grammars of a model.
    #[derive(Debug, Default)]
    pub struct Grammars {
        vocabulary: OnceLock<Result<Vocabulary, FormatError>>,
        /// The one used last is the last.
        kept: Mutex<VecDeque<(ResponseFormat, Constraint)>>,
    }

    impl Grammars {
        /// A text of a format that has no token yet; none for any text.
        pub fn read(
            &self,
            format: &ResponseFormat,
            tokenizer: &Tokenizer,
        ) -> Result<Option<Constraint>, FormatError> {
            if *format == ResponseFormat::Text {
                return Ok(None);
            }
            if let Some(constraint) = self.find(format) {
                return Ok(Some(constraint));
            }
            let vocabulary = self.vocabulary.get_or_init(|| Vocabulary::new(tokenizer)).as_ref();
            let read = vocabulary.map_err(Clone::clone)?.read(format)?;
            if let Some(constraint) = &read {
                let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.push_back((format.clone(), constraint.clone()));
                if kept.len() > KEPT {
                    kept.pop_front();
                }
            }
            Ok(read)
        }

        fn find(&self, format: &ResponseFormat) -> Option<Constraint> {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let found = kept.iter().position(|(of, _)| of == format)?;
            let entry = kept.remove(found)?;
            let constraint = entry.1.clone();
            kept.push_back(entry);
            Some(constraint)
        }
    }
}

#[cfg(not(feature = "grammar"))]
mod kept {
    use bitnet_inference::{Constraint, FormatError, ResponseFormat};
    use bitnet_model::tokenizer::Tokenizer;

    /// There are none in a program that was built without.
    #[derive(Debug, Default)]
    pub struct Grammars;

    impl Grammars {
        /// Nothing for any text, and an error for every other format.
        pub fn read(
            &self,
            format: &ResponseFormat,
            _: &Tokenizer,
        ) -> Result<Option<Constraint>, FormatError> {
            match format {
                ResponseFormat::Text => Ok(None),
                format => Err(FormatError::NotBuilt { format: format.name() }),
            }
        }
    }
}

pub(crate) use kept::Grammars;
