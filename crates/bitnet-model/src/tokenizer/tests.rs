//! Whole tokenizers against ids from their references.
