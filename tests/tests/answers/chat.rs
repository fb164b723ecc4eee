//! `umbel chat` as a program: what is typed comes through a pipe.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};

use serde_json::{Value, json};
use umbel_tests::process::umbel_binary;
use umbel_tests::swarm::{cache, checkpoint, umbel};

/// A chat in one process. It is killed when this is dropped.
struct Chat {
    child: Child,
    typed: Option<ChildStdin>,
    said: BufReader<Box<dyn Read>>,
}

impl Drop for Chat {
    fn drop(&mut self) {
        // It may have ended.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

impl Chat {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(umbel_binary().unwrap());
        command.arg("--cache-dir").arg(cache()).args(["chat", "--local", "--temperature", "0"]);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let typed = child.stdin.take();
        let said = BufReader::new(Box::new(child.stdout.take().unwrap()) as Box<dyn Read>);
        Self { child, typed, said }
    }

    fn enter(&mut self, line: &str) {
        writeln!(self.typed.as_mut().unwrap(), "{line}").unwrap();
    }

    /// The first line of an answer, or what is left of one.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line
    }

    fn interrupt(&self) {
        let id = libc::pid_t::try_from(self.child.id()).unwrap();
        #[allow(unsafe_code, reason = "the standard library sends no signal but SIGKILL")]
        // SAFETY: kill(2) touches no memory of this process; the id is that of our child, which has
        // not been waited for.
        unsafe {
            libc::kill(id, libc::SIGINT);
        }
    }

    /// Closes stdin and waits for a good end; what was said on stderr.
    fn end(self) -> String {
        let (code, rest) = self.ended();
        assert_eq!(code, Some(0), "{rest}");
        rest
    }

    /// Closes stdin and waits for the end: the code, and what was said on stderr.
    fn ended(mut self) -> (Option<i32>, String) {
        drop(self.typed.take());
        let mut rest = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

#[test]
fn ctrl_c_stops_the_answer_and_the_chat_goes_on() {
    let mut chat = Chat::start(&["--max-tokens", "4000"]);
    chat.enter("Write a very long story about a river, with many chapters.");
    let mut first = [0; 8];
    chat.said.read_exact(&mut first).unwrap();
    chat.interrupt();
    // Without the signal the story would go on for minutes; its last line ends where it was stopped.
    let mut story = chat.line();
    let file = tempfile::tempdir().unwrap();
    let path = file.path().join("chat.jsonl");
    chat.enter(&format!("/save {}", path.to_str().unwrap()));
    chat.enter("/new");
    chat.enter("/quit");
    chat.said.read_to_string(&mut story).unwrap();
    let log = chat.end();
    assert!(log.contains("is written"), "{log}");
    let saved: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(saved["messages"].as_array().unwrap().len(), 2, "{saved}");
    let answer = saved["messages"][1]["content"].as_str().unwrap();
    let shown = String::from_utf8(first.to_vec()).unwrap() + &story;
    assert_eq!(shown.trim_end_matches('\n'), answer.trim_end_matches('\n'));
}

#[test]
fn the_model_is_told_things_and_the_conversation_is_saved_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.jsonl");
    let path = path.to_str().unwrap();
    let mut chat = Chat::start(&["--max-tokens", "4", "--system", "You are a bird."]);
    chat.enter("Hello");
    let _answer = chat.line();
    chat.enter("/system You are a fish.");
    chat.enter("//help me");
    let answer = chat.line();
    chat.enter(&format!("/save {path}"));
    chat.enter(&format!("/save {path}"));
    chat.enter("/help");
    chat.enter("/dance");
    let log = chat.end();
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(text.lines().count(), 1, "so that several can be put together: {text}");
    let said = json!({ "messages": [
        { "role": "system", "content": "You are a fish." },
        { "role": "user", "content": "/help me" },
        { "role": "assistant", "content": answer.trim_end_matches('\n') },
    ] });
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), said);
    assert!(log.contains("name another file"), "what is there is not overwritten: {log}");
    assert!(log.contains("/system TEXT") && log.contains("/dance is no command"), "{log}");
}

#[test]
fn a_chat_that_nobody_reads_ends() {
    let mut chat = Chat::start(&["--max-tokens", "200"]);
    chat.enter("Write a long story.");
    let mut first = [0; 1];
    chat.said.read_exact(&mut first).unwrap();
    drop(std::mem::replace(&mut chat.said, BufReader::new(Box::new(std::io::empty()))));
    // Its stdin is open, so that it does not end by that.
    assert_eq!(chat.child.wait().unwrap().code(), Some(1));
    let mut said = String::new();
    chat.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("stdout is closed"), "{said}");
}

#[test]
fn a_chat_from_a_pipe_goes_on_behind_an_answer_that_fails_and_ends_with_a_failure() {
    let mut chat = Chat::start(&["--max-tokens", "4"]);
    // The model's context holds 8,192 tokens.
    chat.enter(&"word ".repeat(9_000));
    chat.enter("Hello");
    assert!(!chat.line().trim().is_empty(), "the next question is answered");
    let (code, said) = chat.ended();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("questions without an answer: 1"), "{said}");
}

#[test]
fn a_model_that_knows_no_text_is_refused_at_once() {
    let output = umbel(&["chat", &checkpoint("llama"), "--local"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    output.refused("the model has no tokenizer");
    assert!(output.stderr.contains("umbel generate"), "{}", output.stderr);
}
