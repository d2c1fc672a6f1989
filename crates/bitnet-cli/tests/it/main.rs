//! The program as its users run it: arguments, pipes, signals and exit codes, on the embedded model and on tiny ones.

mod cache;
mod chat;
mod errors;
mod inference;
mod machine;
mod malformed;
mod measure;
mod models;
mod parallel;
#[cfg(all(unix, feature = "server"))]
mod serve;
#[cfg(unix)]
mod signals;
mod synth;
mod tools;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// The program, without the tester's own settings.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-cli"));
    let ours = ["BITNET_", "HF_", "RAYON_", "OMP_", "MKL_", "OPENBLAS_", "RUST_LOG", "NO_COLOR"];
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| ours.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// What a run left behind.
pub struct Run {
    /// Results.
    pub stdout: String,
    /// Everything else.
    pub stderr: String,
    /// Exit code, none if a signal ended it.
    pub code: Option<i32>,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            code: output.status.code(),
        }
    }
}

/// Runs it with arguments.
pub fn run<'a>(args: impl IntoIterator<Item = &'a str>) -> Run {
    program().args(args).output().unwrap().into()
}

/// Runs it with arguments and this text at stdin.
pub fn run_with_stdin<'a>(args: impl IntoIterator<Item = &'a str>, stdin: &[u8]) -> Run {
    let mut command = program();
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(stdin); // it may refuse its arguments first
    child.wait_with_output().unwrap().into()
}

impl Run {
    /// Standard output of a run that went well.
    #[track_caller]
    pub fn text(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self.stdout
    }

    /// The same as JSON.
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.text()).unwrap()
    }
}

/// A file of the test data.
pub fn testdata(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(path)
}
