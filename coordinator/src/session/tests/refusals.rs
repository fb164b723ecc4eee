//! Servers that do not let a session in.

use super::*;

/// More than may be replaced.
const REFUSING: u8 = 33;
const _: () = assert!(REFUSING as u32 > MENDS_MAX);

/// What a session says that is refused by so many servers in turn with this code.
fn refused_by_many(code: ErrorCode) -> (Session, Vec<Output>) {
    let mut session = open();
    let mut outputs = drain(&mut session);
    for name in 0..REFUSING {
        assert!(wanted(&outputs[outputs.len() - 1..]).is_some(), "{name}: {outputs:?}");
        session
            .handle(Input::Routed { needed: true, hops: vec![route_hop(name, 0, 6)] }, at(0))
            .unwrap();
        drain(&mut session);
        outputs.extend(say(&mut session, name.into(), refusal(name, code)));
    }
    (session, outputs)
}

fn full(outputs: &[Output]) -> usize {
    outputs.iter().filter(|output| matches!(output, Output::Full { .. })).count()
}

#[test]
fn however_many_have_no_room_the_next_one_may_open_the_session() {
    for code in [ErrorCode::Busy, ErrorCode::KvFull, ErrorCode::BlocksNotServed] {
        let (mut session, outputs) = refused_by_many(code);
        let is_full = code != ErrorCode::BlocksNotServed;
        let (of_full, blamed) = (full(&outputs), blamed(&outputs).len());
        let all = usize::from(REFUSING);
        assert_eq!((of_full, blamed), if is_full { (all, 0) } else { (0, all) }, "{code}");
        session
            .handle(Input::Routed { needed: true, hops: vec![route_hop(99, 0, 6)] }, at(0))
            .unwrap();
        drain(&mut session);
        let outputs = say(&mut session, REFUSING.into(), opened(99));
        assert!(matches!(outputs.as_slice(), [Output::Ready]), "{code}: {outputs:?}");
    }
}

#[test]
fn one_that_is_not_back_yet_is_tried_as_often_as_it_is_brought_back() {
    let mut session = open();
    drain(&mut session);
    let gone = |hop| Input::LinkLost { hop: HopId(hop), detail: "refused".into() };
    for tried in 0..4 * MENDS_MAX {
        let now = at(u64::from(tried));
        let again = route_hop(7, 0, 6);
        session.handle(Input::Routed { needed: true, hops: vec![again] }, now).unwrap();
        drain(&mut session);
        session.handle(gone(tried), now).unwrap();
        let outputs = drain(&mut session);
        assert!(wanted(&outputs).is_some(), "{tried}: {outputs:?}");
    }
    assert_eq!(session.mends(), 1);
}

#[test]
fn a_server_that_takes_no_adapters_is_not_at_fault() {
    for (adapter, blames) in [(None, 1), (Some(adapter::adapter()), 0)] {
        let mut session = Session::open(SessionConfig { adapter, ..config(false) }, at(0));
        drain(&mut session);
        session
            .handle(Input::Routed { needed: true, hops: vec![route_hop(1, 0, 6)] }, at(0))
            .unwrap();
        drain(&mut session);
        let outputs = say(&mut session, 0, refusal(1, ErrorCode::BlocksNotServed));
        assert_eq!(blamed(&outputs).len(), blames);
    }
}
