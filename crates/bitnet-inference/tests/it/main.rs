//! Engines with whole models.

mod engine;
mod faulty;
mod golden;
mod service;
mod stress;
mod support;
