//! Between what the machine of the rounds says and what travels.

use std::sync::Arc;

use umbel_coordinator::training::round::{Delta, Message, RunState};
use umbel_protocol::ProtocolViolation;
use umbel_protocol::averaging::MemberMessage;

/// What travels.
pub(super) fn to_wire(message: Message) -> MemberMessage {
    let contribution = |start, author, delta: &Delta| MemberMessage::Contribution {
        start,
        author,
        scales: delta.scales().to_vec(),
        steps: delta.steps().to_vec(),
    };
    match message {
        Message::Stand(stand) => MemberMessage::Stand(stand),
        Message::Contribution { start, delta } => contribution(start, None, &delta),
        Message::Relayed { start, author, delta } => contribution(start, Some(author), &delta),
        Message::Proposal { start, deltas } => MemberMessage::Proposal { start, deltas },
        Message::WantDelta { start, author } => MemberMessage::WantDelta { start, author },
        Message::WantState(stand) => MemberMessage::WantState(stand),
        Message::State(state) => MemberMessage::State {
            round: state.round(),
            values: state.values().to_vec(),
            momentum: state.momentum().to_vec(),
        },
    }
}

/// What the machine hears.
///
/// # Errors
/// [`ProtocolViolation`] where it makes no sense at that place.
pub(super) fn from_wire(message: MemberMessage) -> Result<Message, ProtocolViolation> {
    Ok(match message {
        MemberMessage::Hello { .. } => {
            return Err(ProtocolViolation::Unexpected { message: "MemberHello" });
        }
        MemberMessage::Stand(stand) => Message::Stand(stand),
        MemberMessage::Contribution { start, author, scales, steps } => {
            let delta = Delta::from_parts(scales, steps);
            let delta = delta.ok_or(ProtocolViolation::OutOfBounds { field: "a delta" })?;
            let delta = Arc::new(delta);
            match author {
                Some(author) => Message::Relayed { start, author, delta },
                None => Message::Contribution { start, delta },
            }
        }
        MemberMessage::Proposal { start, deltas } => Message::Proposal { start, deltas },
        MemberMessage::WantDelta { start, author } => Message::WantDelta { start, author },
        MemberMessage::WantState(stand) => Message::WantState(stand),
        MemberMessage::State { round, values, momentum } => {
            let state = RunState::from_parts(round, values, momentum);
            let state = state.ok_or(ProtocolViolation::OutOfBounds { field: "a state" })?;
            Message::State(Arc::new(state))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use umbel_coordinator::training::round::{Feedback, Stand};
    use umbel_protocol::PeerId;

    use super::*;

    #[test]
    fn what_the_machine_says_is_what_the_other_hears() {
        let start = Stand { round: 3, digest: [1; 32] };
        let author = PeerId::from_public_key([2; 32]);
        let delta = Arc::new(Feedback::default().narrow(&[1.0, -0.5]).unwrap().0);
        let state = RunState::begin(vec![1.0, 2.0]).unwrap();
        for message in [
            Message::Stand(None),
            Message::Stand(Some(start)),
            Message::Contribution { start, delta: Arc::clone(&delta) },
            Message::Relayed { start, author, delta },
            Message::Proposal { start, deltas: BTreeMap::from([(author, [3; 32])]) },
            Message::WantDelta { start, author },
            Message::WantState(start),
            Message::State(Arc::new(state)),
        ] {
            let frame = to_wire(message.clone()).encode();
            assert_eq!(from_wire(MemberMessage::decode(frame).unwrap()).unwrap(), message);
        }
    }

    #[test]
    fn what_is_no_delta_and_no_state_is_a_violation() {
        let start = Stand { round: 3, digest: [1; 32] };
        let steps = vec![1, i8::MIN];
        let contribution =
            MemberMessage::Contribution { start, author: None, scales: vec![1.0], steps };
        assert!(from_wire(contribution).is_err());
        let state = MemberMessage::State { round: 1, values: vec![f32::NAN], momentum: vec![0.0] };
        assert!(from_wire(state).is_err());
        let hello =
            MemberMessage::Hello { run: [0; 32], addresses: Vec::new(), members: BTreeMap::new() };
        assert!(from_wire(hello).is_err());
    }
}
