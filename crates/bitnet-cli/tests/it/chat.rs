use crate::{run, run_with_stdin};

const GREEDY: [&str; 6] = ["chat", "--temperature", "0", "-n", "8", "-t1"];

#[test]
fn answers_go_to_stdout_and_notes_to_stderr() {
    let end = run_with_stdin(
        GREEDY,
        b"Tell me a story about a dog.\n/stats\nAnother one.\n/exit\nnever read\n",
    );
    assert!(end.stderr.contains("context 512 tokens"), "greeting: {}", end.stderr);
    assert!(end.stderr.contains("exchanges  1\n"), "stats: {}", end.stderr);
    assert!(end.stderr.contains("stopped after 8 tokens"), "{}", end.stderr);
    let text = end.text();
    assert_eq!(text.lines().filter(|line| !line.is_empty()).count(), 2, "{text}");
    assert!(!text.contains('>'), "no prompts in a pipe: {text}");
}

#[test]
fn a_conversation_remembers_and_undo_forgets() {
    let folder = tempfile::tempdir().unwrap();
    let (before, after) = (folder.path().join("before.json"), folder.path().join("after.txt"));
    let script = format!(
        "/system Be kind.\nFirst\\\nturn\n\"\"\"Second\nturn\"\"\"\n/save {}\n/undo\n/save {}\n",
        before.display(),
        after.display()
    );
    let end = run_with_stdin(GREEDY, script.as_bytes());
    assert_eq!(end.code, Some(0), "{}", end.stderr);
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&before).unwrap()).unwrap();
    let messages = json["messages"].as_array().unwrap();
    let roles: Vec<_> = messages.iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
    assert_eq!(
        (&messages[1]["content"], &messages[3]["content"]),
        (&"First\nturn".into(), &"Second\nturn".into())
    );
    let text = std::fs::read_to_string(&after).unwrap();
    assert!(text.starts_with("system: Be kind.\n\nuser: First\nturn\n\nassistant: "), "{text}");
    assert!(!text.contains("Second"), "{text}");
}

#[test]
fn a_full_context_forgets_the_oldest_exchanges_and_says_so() {
    let turns = "Tell me a story about a dog.\n".repeat(5);
    let end = run_with_stdin(GREEDY.into_iter().chain(["-c", "64"]), turns.as_bytes());
    let warning =
        "the context of 64 tokens is full: forgot the oldest 1 exchange; /clear starts afresh";
    assert!(end.stderr.contains(warning), "{}", end.stderr);
    assert_eq!(end.code, Some(0));
}

#[test]
fn a_turn_that_never_fits_is_refused() {
    let turn = format!("{}\n", "dog ".repeat(100));
    let end = run_with_stdin(GREEDY.into_iter().chain(["-c", "64"]), turn.as_bytes());
    assert_eq!(end.code, Some(2));
    assert!(
        end.stderr.contains("but the context has room for") && end.stderr.contains("hint:"),
        "{}",
        end.stderr
    );
}

#[test]
fn an_unknown_command_ends_a_pipe_with_an_error() {
    let end = run_with_stdin(GREEDY, b"/jump\n");
    assert_eq!((end.code, end.stdout.as_str()), (Some(2), ""));
    assert!(end.stderr.contains("/jump is no command; /help lists them"), "{}", end.stderr);
}

#[test]
fn settings_can_be_changed_and_wrong_ones_not() {
    let end = run_with_stdin(GREEDY, b"/set max-tokens 3\n/set\nHello\n");
    assert!(
        end.stderr.contains("max-tokens is 3") && end.stderr.contains("stopped after 3 tokens"),
        "{}",
        end.stderr
    );
    let end = run_with_stdin(GREEDY, b"/set top-p 7\n");
    assert_eq!(end.code, Some(2));
    assert!(end.stderr.contains("top_p") && end.stderr.contains('7'), "{}", end.stderr);
}

#[test]
fn the_conversation_flag_of_run_starts_a_chat() {
    let args = ["run", "-p", "You are kind.", "-cnv", "-n", "4", "-t", "1"];
    let end = run_with_stdin(args, b"/system\nHello\n");
    assert!(end.stderr.contains("You are kind."), "{}", end.stderr);
    assert!(!end.text().is_empty());
}

#[test]
fn no_turns_are_no_error() {
    let end = run(["chat", "-q"]);
    assert_eq!((end.code, end.stdout.as_str(), end.stderr.as_str()), (Some(0), "", ""));
}
