//! Tokenizers in the metadata of GGUF files.
