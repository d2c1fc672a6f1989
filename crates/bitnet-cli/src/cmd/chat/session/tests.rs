use super::*;
use crate::args::Cli;
use crate::cmd::Command;
use clap::Parser;

/// A session with some exchanges, whose messages have ten letters each.
fn session(exchanges: usize) -> Session {
    let Command::Chat(args) = Cli::parse_from(["x", "chat", "-n", "20", "--seed", "5"]).command
    else {
        unreachable!()
    };
    let mut session = Session::new(Some("system 10c".into()), args.sampling);
    for index in 0..exchanges {
        session.ask(format!("question {index}"));
        session.answered(format!("answer   {index}"));
    }
    session
}

/// One token for each letter.
fn letters(messages: &[Message]) -> anyhow::Result<usize> {
    Ok(messages.iter().map(|message| message.content.len()).sum())
}

#[test]
fn nothing_is_forgotten_while_there_is_room() {
    let mut session = session(2);
    session.ask("question x".into());
    assert_eq!(session.make_room(80, letters).unwrap(), 0); // 60 letters and an answer of 20
}

#[test]
fn the_oldest_exchanges_go_first_and_the_system_message_stays() {
    let mut session = session(3);
    session.ask("question x".into());
    // 80 letters; a quarter of the context, 19, is kept for the answer, so 57 are left.
    assert_eq!(session.make_room(76, letters).unwrap(), 2);
    let messages = session.messages();
    let texts: Vec<_> = messages.iter().map(|message| message.content.as_str()).collect();
    assert_eq!(texts, ["system 10c", "question 2", "answer   2", "question x"]);
}

#[test]
fn a_turn_that_never_fits_is_an_error_with_the_numbers() {
    let mut session = session(0);
    session.ask("x".repeat(100));
    let error = session.make_room(100, letters).unwrap_err().to_string();
    assert_eq!(
        error,
        "this turn takes 110 tokens with the system message, but the context has room for 80"
    );
}

#[test]
fn exchanges_are_taken_back_whole() {
    let mut session = session(2);
    assert!(session.undo());
    assert_eq!(session.exchanges(), 1);
    assert!(session.undo() && !session.undo());
    assert!(!session.forget_answer());
}

#[test]
fn an_answer_is_made_again_with_another_seed() {
    let mut session = session(1);
    assert_eq!(session.next_config().seed, Some(5));
    assert!(session.forget_answer());
    assert_eq!(session.next_config().seed, Some(6));
    assert_eq!(session.messages().last().map(|message| message.role), Some(Role::User));
}

#[test]
fn a_conversation_is_saved_for_people_and_programs() {
    let session = session(1);
    assert_eq!(
        session.transcript(),
        "system: system 10c\n\nuser: question 0\n\nassistant: answer   0\n"
    );
    let json: serde_json::Value = serde_json::from_str(&session.json()).unwrap();
    assert_eq!(json["messages"][1], json!({ "role": "user", "content": "question 0" }));
}
