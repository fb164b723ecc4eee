//! Several steps of one session at once.

use super::*;

#[test]
fn only_the_rows_that_are_wanted_go_back_to_the_client() {
    let mut server = server(128);
    say(&mut server, LINK, ClientMessage::Open(opening(1)));
    let wanted = Step { answer_rows: AnswerRows::Last, ..step(1, 0, 0, 3) };
    let outputs = say(&mut server, LINK, ClientMessage::Step(wanted));
    let outputs = compute(&mut server, job(&outputs).unwrap(), 3);
    let [Output::Send { message: ServerMessage::Output(answer), .. }] = outputs.as_slice() else {
        panic!("{outputs:?}");
    };
    assert_eq!((answer.position, answer.token_count()), (2, 1));
}

#[test]
fn a_step_takes_the_place_of_what_waits_from_its_position_on() {
    let mut server = server(128);
    say(&mut server, LINK, ClientMessage::Open(opening(1)));
    let mut running = None;
    for (number, position) in [(0, 0), (1, 10), (2, 20), (3, 30), (2, 20), (3, 30)] {
        let outputs = say(&mut server, LINK, ClientMessage::Step(step(1, number, position, 10)));
        assert_eq!(refusal(&outputs), None);
        running = running.or(job(&outputs));
    }
    assert_eq!(server.queue_depth(), 4, "what came twice waits once");
    for position in [10, 20, 30] {
        let outputs = compute(&mut server, running.take().unwrap(), 10);
        let next = outputs.iter().find_map(|output| {
            let Output::Compute(batch) = output else { return None };
            Some((batch.id, batch.jobs[0].position))
        });
        assert_eq!(next.map(|(_, position)| position), Some(position));
        running = next.map(|(job, _)| job);
    }
}
