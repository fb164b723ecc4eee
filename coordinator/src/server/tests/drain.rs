//! A server that leaves, or gives up blocks for others.

use super::*;

#[test]
fn a_server_that_leaves_asks_its_clients_to_and_says_when_they_have() {
    let mut server = busy(Destination::Client);
    server.handle(Input::Drain, Time::START).unwrap();
    let outputs = drain(&mut server);
    let asked = |output: &Output| {
        matches!(output, Output::Send { message: ServerMessage::Draining { .. }, .. })
    };
    assert!(outputs.iter().any(asked), "{outputs:?}");
    let refused = say(&mut server, LINK, ClientMessage::Open(opening(2)));
    assert_eq!(refusal(&refused), Some(ErrorCode::Draining));
    let running = job(&say(&mut server, LINK, ClientMessage::Step(step(1, 2, 5, 1)))).unwrap();
    assert!(!compute(&mut server, running, 1).is_empty(), "it serves on until then");
    let outputs = say(&mut server, LINK, ClientMessage::Close { session: SessionId::new(1) });
    assert!(outputs.iter().any(|output| matches!(output, Output::Drained { .. })), "{outputs:?}");
}

#[test]
fn a_server_that_moves_opens_on_the_new_blocks_and_ends_late_sessions_on_the_old() {
    let mut server = busy(Destination::Client);
    let (shard, span) = (ShardId(1), Span::new(6, 8).unwrap());
    let free_before = server.kv_tokens_free();
    server.handle(Input::Serve { shard, span }, Time::START).unwrap();
    drain(&mut server);
    // Half as many blocks, and what the session on the old ones has reserved is still reserved.
    assert_eq!(server.kv_tokens_free(), 2 * free_before);
    let old = say(&mut server, LINK, ClientMessage::Open(opening(2)));
    assert_eq!(refusal(&old), Some(ErrorCode::BlocksNotServed));
    let open = OpenSession { blocks: span, ..opening(3) };
    let outputs = say(&mut server, LINK, ClientMessage::Open(open));
    let on_new = |output: &Output| matches!(output, Output::OpenCache { shard: ShardId(1), .. });
    assert!(outputs.iter().any(on_new), "{outputs:?}");
    let deadline = server.poll_timeout().unwrap();
    assert_eq!(deadline, Time::START + DRAIN_TIMEOUT);
    server.handle_timeout(deadline);
    let outputs = drain(&mut server);
    assert_eq!(refusal(&outputs), Some(ErrorCode::Draining));
    let dropped = |output: &Output| matches!(output, Output::Drained { shard: ShardId(0) });
    assert!(outputs.iter().any(dropped), "{outputs:?}");
    assert_eq!(server.session_count(), 1);
}

#[test]
fn a_server_that_has_drained_waits_for_nothing_and_says_so_again_when_asked() {
    let mut server = server(128);
    for _ in 0..2 {
        server.handle(Input::Drain, Time::START).unwrap();
        let outputs = drain(&mut server);
        assert!(matches!(outputs[..], [Output::Drained { shard: ShardId(0) }]), "{outputs:?}");
        assert_eq!(server.poll_timeout(), None);
    }
    // Blocks that it loads afterwards are served as any others.
    let (shard, span) = (ShardId(1), Span::new(6, 8).unwrap());
    server.handle(Input::Serve { shard, span }, Time::START).unwrap();
    drain(&mut server);
    let open = OpenSession { blocks: span, ..opening(3) };
    let outputs = say(&mut server, LINK, ClientMessage::Open(open));
    assert_eq!(refusal(&outputs), None, "{outputs:?}");
}

#[test]
fn each_shard_that_is_given_up_is_said_to_be_left_once_however_many_sessions_end() {
    let mut server = server(1_024);
    for session in 1..=12 {
        say(&mut server, LINK, ClientMessage::Open(opening(session)));
    }
    let (shard, span) = (ShardId(1), Span::new(6, 8).unwrap());
    server.handle(Input::Serve { shard, span }, Time::START).unwrap();
    server.handle(Input::Drain, Time::START).unwrap();
    let left = |outputs: &[Output]| -> Vec<ShardId> {
        let shard = |output: &Output| {
            let Output::Drained { shard } = output else { return None };
            Some(*shard)
        };
        outputs.iter().filter_map(shard).collect()
    };
    assert_eq!(left(&drain(&mut server)), [shard]);
    server.handle_timeout(Time::START + DRAIN_TIMEOUT);
    assert_eq!(left(&drain(&mut server)), [ShardId(0)]);
}
