//! What peers write for people.

use umbel_protocol::inference::{Neighbour, ServerMessage, SessionError, Trouble};
use umbel_protocol::training::TrainingAnswer;
use umbel_protocol::{ErrorCode, SessionId};

#[test]
fn words_of_a_peer_reach_no_terminal_as_anything_but_text() {
    let (detail, session) = ("a\u{1b}]0;b\u{7}\nc\u{202e}d".to_owned(), SessionId::new(1));
    let code = ErrorCode::Internal;
    let error = SessionError { session, step: None, code, detail: detail.clone() };
    let read = ServerMessage::decode(ServerMessage::Error(error).encode()).unwrap();
    let ServerMessage::Error(error) = read else { panic!("{read:?}") };
    let trouble = Trouble { session, neighbour: Neighbour::Next, code, detail: detail.clone() };
    let read = ServerMessage::decode(ServerMessage::Trouble(trouble).encode()).unwrap();
    let ServerMessage::Trouble(trouble) = read else { panic!("{read:?}") };
    let refusal = TrainingAnswer::Error { code, detail };
    let read = TrainingAnswer::decode(refusal.encode()).unwrap();
    let TrainingAnswer::Error { detail: refused, .. } = read else { panic!("{read:?}") };
    for shown in [error.detail, trouble.detail, refused] {
        assert_eq!(shown, "a]0;b cd");
    }
}
