//! What is to be said to a member, and what of it travels.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use umbel_coordinator::training::round::{Delta, MEMBERS_MAX, Message, RunState};
use umbel_protocol::ProtocolViolation;
use umbel_protocol::averaging::MemberMessage;

/// What waits to be said to one member: a delta of each other for one that has missed them, and the words
/// of two rounds. Who reads less is left.
const WAITING_MAX: usize = 2 * MEMBERS_MAX;

/// What is to be said to one member, in order.
#[derive(Default)]
pub(super) struct Words {
    waiting: Mutex<VecDeque<Message>>,
    more: Notify,
}

impl Words {
    /// Whether there is room for one thing more.
    ///
    /// Who asks again before it has read the answer gets no second one, and who asks for what has come
    /// since, only that.
    pub(super) fn say(&self, message: Message) -> bool {
        let mut waiting = self.waiting();
        if let Message::State(_) = &message {
            waiting.retain(|other| !matches!(other, Message::State(_)));
        }
        if let Message::Relayed { start, author, .. } = &message {
            waiting.retain(|other| {
                let Message::Relayed { start: before, author: of, .. } = other else { return true };
                before == start && of != author
            });
        }
        if waiting.len() >= WAITING_MAX {
            return false;
        }
        waiting.push_back(message);
        self.more.notify_one();
        true
    }

    /// The next thing to say, once there is one.
    pub(super) async fn next(&self) -> Message {
        loop {
            if let Some(message) = self.waiting().pop_front() {
                return message;
            }
            self.more.notified().await;
        }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Message>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
    fn of_what_is_asked_for_again_and_again_one_answer_waits() {
        let words = Words::default();
        let state = |value: f32| Message::State(Arc::new(RunState::begin(vec![value]).unwrap()));
        let relayed = |round: u64, author: u8| {
            let delta = Arc::new(Feedback::default().narrow(&[1.0]).unwrap().0);
            let (start, author) = (Stand { round, digest: [1; 32] }, [author; 32]);
            Message::Relayed { start, author: PeerId::from_public_key(author), delta }
        };
        for _ in 0..2 * WAITING_MAX {
            for message in [state(1.0), state(2.0), relayed(1, 1), relayed(2, 1), relayed(2, 2)] {
                assert!(words.say(message));
            }
        }
        let waiting: Vec<_> = words.waiting().drain(..).collect();
        assert_eq!(waiting, [state(2.0), relayed(2, 1), relayed(2, 2)]);
        for _ in 0..WAITING_MAX {
            assert!(words.say(Message::Stand(None)));
        }
        assert!(!words.say(Message::Stand(None)), "it reads too little");
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
