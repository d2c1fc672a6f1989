use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Run, program};

fn interrupt(child: &Child) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
}

#[test]
fn ctrl_c_stops_an_answer_whole_with_code_130() {
    let mut command = program();
    command.args(["run", "-p", "Once", "-n", "500", "--ignore-eos", "-q"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 20];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    interrupt(&child);
    let before = Instant::now();
    let end: Run = child.wait_with_output().unwrap().into();
    assert!(before.elapsed() < Duration::from_secs(1), "it stops soon");
    assert_eq!((end.code, end.stderr.as_str()), (Some(130), ""));
    assert!(end.stdout.ends_with('\n'), "the last line is whole: {:?}", end.stdout);
}

#[test]
fn ctrl_c_ends_a_chat_that_waits_for_a_pipe() {
    let mut command = program();
    command.arg("chat").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _open = child.stdin.take(); // `wait` would close it, which ends a chat as well
    let mut greeting = String::new();
    while !greeting.contains("context 512") {
        let mut byte = [0];
        child.stderr.as_mut().unwrap().read_exact(&mut byte).unwrap();
        greeting.push(char::from(byte[0]));
    }
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}
