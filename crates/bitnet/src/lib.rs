//! bitnet
