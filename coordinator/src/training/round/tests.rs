//! Members that speak at once and lose nothing; a world with delays and leavers is in `umbel-simnet`.

use std::time::Duration;

use super::combine::outliers;
use super::*;

const LEARN: Duration = Duration::from_secs(60);
const GATHER: Duration = Duration::from_secs(4);

fn settings() -> RunSettings {
    RunSettings {
        rule: Rule::TrimmedMean,
        outer: OuterStep { learning_rate: 1.0, momentum: 0.0 },
        learn: LEARN,
        gather: GATHER,
    }
}

const fn peer(name: u8) -> PeerId {
    PeerId::from_public_key([name; 32])
}

fn at(seconds: u64) -> Time {
    Time::START + Duration::from_secs(seconds)
}

/// Members by their names, and what each was told to do last.
struct Room {
    members: BTreeMap<u8, Member>,
    begun: BTreeMap<u8, Vec<RunState>>,
    asked: Vec<(u8, u64)>,
    /// Who hears nothing and is not heard.
    deaf: Vec<u8>,
}

impl Room {
    fn new(names: std::ops::Range<u8>) -> Self {
        let state = RunState::begin(vec![0.0; 3]).unwrap();
        let new = |name| Member::new(peer(name), settings(), Some(state.clone()), Time::START);
        let members: BTreeMap<_, _> = names.map(|name| (name, new(name))).collect();
        let mut room =
            Self { members, begun: BTreeMap::new(), asked: Vec::new(), deaf: Vec::new() };
        let names: Vec<_> = room.members.keys().copied().collect();
        names.iter().for_each(|name| room.introduce(*name, Time::START));
        room
    }

    /// Lets a member meet those with smaller names.
    fn introduce(&mut self, name: u8, now: Time) {
        let others: Vec<_> = self.members.range(..name).map(|(other, _)| *other).collect();
        for other in others {
            self.handle(name, Input::Met { peer: peer(other) }, now);
            self.handle(other, Input::Met { peer: peer(name) }, now);
        }
        self.carry(now);
    }

    fn handle(&mut self, name: u8, input: Input, now: Time) {
        if let Some(member) = self.members.get_mut(&name) {
            member.handle(input, now);
        }
    }

    /// Carries what members say, until nobody says anything.
    fn carry(&mut self, now: Time) {
        loop {
            let mut said = Vec::new();
            for (name, member) in &mut self.members {
                while let Some(output) = member.poll() {
                    match output {
                        Output::Send { to, message } => said.push((*name, to, message)),
                        Output::Begin { state } => {
                            self.begun.entry(*name).or_default().push((*state).clone());
                        }
                        Output::Learned { round } => self.asked.push((*name, round)),
                    }
                }
            }
            if said.is_empty() {
                return;
            }
            for (from, to, message) in said {
                let to = to.public_key()[0];
                if !self.deaf.contains(&from) && !self.deaf.contains(&to) {
                    self.handle(to, Input::Received { from: peer(from), message }, now);
                }
            }
        }
    }

    /// Lets time pass for all.
    fn pass(&mut self, now: Time) {
        self.members.values_mut().for_each(|member| member.handle_timeout(now));
        self.carry(now);
    }

    fn learned(&mut self, name: u8, round: u64, value: f32, now: Time) {
        self.handle(name, Input::Learned { round, values: vec![value; 3] }, now);
        self.carry(now);
    }

    fn stands(&self) -> Vec<Option<Stand>> {
        self.members.values().map(|member| member.state().map(RunState::stand)).collect()
    }

    fn first_value(&self, name: u8) -> f32 {
        self.members[&name].state().unwrap().values()[0]
    }
}

#[test]
fn a_round_ends_as_soon_as_all_have_told_and_all_come_to_the_same() {
    let mut room = Room::new(1..4);
    room.pass(at(59));
    assert_eq!(room.asked, []);
    room.pass(at(60));
    assert_eq!(room.asked, [(1, 0), (2, 0), (3, 0)]);
    room.learned(1, 0, 1.0, at(60));
    room.learned(2, 0, 2.0, at(61));
    assert_eq!(room.stands()[0].unwrap().round, 0, "one has yet to tell");
    room.learned(3, 0, 9.0, at(62));
    assert!(room.stands().iter().all(|stand| *stand == room.stands()[0]));
    assert_eq!(room.stands()[0].unwrap().round, 1);
    // The middle of three, in steps of a 127th.
    assert!((room.first_value(1) - 2.0).abs() < 1e-6, "{}", room.first_value(1));
    let begun: Vec<_> = room.begun[&2].iter().map(RunState::round).collect();
    assert_eq!(begun, [0, 1]);
}

#[test]
fn who_stalls_is_left_out_of_a_round_and_goes_on_with_the_next() {
    let mut room = Room::new(1..5);
    room.pass(at(60));
    for name in 1..4 {
        room.learned(name, 0, 1.0, at(60));
    }
    room.pass(at(63));
    assert_eq!(room.stands()[0].unwrap().round, 0, "it is waited for a little");
    // Each turn that a silent member might have comes and goes.
    (64..=76).for_each(|second| room.pass(at(second)));
    assert!(room.stands().iter().all(|stand| stand.unwrap().round == 1), "{:?}", room.stands());
    assert!(room.stands().iter().all(|stand| *stand == room.stands()[0]));
    let before = room.stands();
    room.learned(4, 0, 7.0, at(77));
    assert_eq!(room.stands(), before, "what comes too late changes nothing");
}

#[test]
fn a_member_that_may_propose_and_is_gone_holds_nobody_up() {
    let mut room = Room::new(1..6);
    room.pass(at(60));
    // Whoever is first to propose falls silent behind its delta.
    for name in 1..6 {
        room.handle(name, Input::Learned { round: 0, values: vec![1.0; 3] }, at(60));
        let member = room.members.get_mut(&name).unwrap();
        let said: Vec<_> = std::iter::from_fn(|| member.poll()).collect();
        for output in said {
            if let Output::Send { to, message } = output
                && matches!(message, Message::Contribution { .. })
            {
                room.handle(
                    to.public_key()[0],
                    Input::Received { from: peer(name), message },
                    at(60),
                );
            }
        }
    }
    let start = RunState::begin(vec![0.0; 3]).unwrap().stand();
    let first = (1..6).min_by_key(|name| gathered::ticket(start, peer(*name)));
    room.deaf.push(first.unwrap());
    (61..=72).for_each(|second| room.pass(at(second)));
    let of_others = room.members.iter().filter(|(name, _)| Some(**name) != first);
    let stands: Vec<_> = of_others.map(|(_, member)| member.state().unwrap().stand()).collect();
    assert!(stands.iter().all(|stand| stand.round == 1 && *stand == stands[0]), "{stands:?}");
}

#[test]
fn who_joins_later_gets_the_state_and_takes_part() {
    let mut room = Room::new(1..4);
    room.pass(at(60));
    (1..4).for_each(|name| room.learned(name, 0, 1.0, at(60)));
    room.members.insert(9, Member::new(peer(9), settings(), None, at(61)));
    room.introduce(9, at(61));
    assert_eq!(room.members[&9].state(), None);
    (62..=64).for_each(|second| room.pass(at(second)));
    assert!(room.stands().iter().all(|stand| *stand == room.stands()[0]), "{:?}", room.stands());
    (120..=124).for_each(|second| room.pass(at(second)));
    assert!(room.asked.contains(&(9, 1)));
    for name in [1, 2, 3, 9] {
        room.learned(name, 1, 2.0, at(125));
    }
    (125..=150).for_each(|second| room.pass(at(second)));
    assert!(room.stands().iter().all(|stand| *stand == room.stands()[0]));
    assert_eq!(room.stands()[0].unwrap().round, 2);
}

#[test]
fn few_cannot_lead_the_others_to_a_state_of_their_own() {
    let mut room = Room::new(1..7);
    let lie = RunState::from_parts(50, vec![9.0; 3], vec![0.0; 3]).unwrap().stand();
    for liar in [1, 2] {
        for name in 3..7 {
            let message = Message::Stand(Some(lie));
            room.handle(name, Input::Received { from: peer(liar), message }, at(1));
        }
    }
    for name in 3..7 {
        let member = room.members.get_mut(&name).unwrap();
        member.handle_timeout(at(30));
        assert_eq!(member.poll(), None, "nobody asks for it");
    }
    // A state that nobody has asked for is not taken either.
    let state = Arc::new(RunState::from_parts(50, vec![9.0; 3], vec![0.0; 3]).unwrap());
    let message = Message::State(state);
    room.handle(3, Input::Received { from: peer(1), message }, at(31));
    assert_eq!(room.stands()[2].unwrap().round, 0);
}

#[test]
fn a_proposal_that_leaves_out_or_makes_up_more_than_the_rule_bears_is_refused() {
    let delta = |value: f32| Arc::new(Feedback::default().narrow(&[value; 3]).unwrap().0);
    let start = RunState::begin(vec![0.0; 3]).unwrap().stand();
    let round = |leaves_out: usize, makes_up: usize| {
        let mut gathered = Gathered::default();
        for name in 0..10 {
            let contribution = Contribution::new(delta(f32::from(name)));
            gathered.contributed(Some(start), (start, peer(name)), contribution);
        }
        let mut deltas = gathered.digests();
        for _ in 0..leaves_out {
            deltas.pop_first();
        }
        for name in 0..makes_up {
            let name = u8::try_from(100 + name).unwrap();
            deltas.insert(peer(name), delta(5.0).digest());
        }
        gathered.proposed(Some(start), (start, peer(9)), deltas);
        gathered.next_proposal(start, |_, _| true)
    };
    assert_eq!(outliers(10), 2);
    assert_eq!(round(0, 0), Some(peer(9)));
    assert_eq!(round(2, 2), Some(peer(9)));
    assert_eq!(outliers(14), 3);
    assert_eq!(round(3, 0), None);
    assert_eq!(round(0, 4), None);
}

#[test]
fn a_delta_that_is_missing_is_asked_of_who_proposed_it() {
    let mut room = Room::new(1..4);
    room.pass(at(60));
    // The third hears nothing of what the first has learned.
    let mut lost = None;
    for name in 1..4 {
        let values = vec![f32::from(name); 3];
        room.handle(name, Input::Learned { round: 0, values }, at(60));
    }
    for name in 1..4 {
        let member = room.members.get_mut(&name).unwrap();
        let said: Vec<_> = std::iter::from_fn(|| member.poll()).collect();
        for output in said {
            let Output::Send { to, message } = output else { continue };
            if (name, to) == (1, peer(3)) {
                lost = Some(message);
            } else {
                room.handle(
                    to.public_key()[0],
                    Input::Received { from: peer(name), message },
                    at(60),
                );
            }
        }
    }
    assert!(matches!(lost, Some(Message::Contribution { .. })), "{lost:?}");
    (60..=80).for_each(|second| {
        room.carry(at(second));
        room.pass(at(second));
    });
    assert!(room.stands().iter().all(|stand| *stand == room.stands()[0]), "{:?}", room.stands());
    assert!((room.first_value(3) - 2.0).abs() < 1e-6, "{}", room.first_value(3));
}

fn long_delta() -> Arc<Delta> {
    Arc::new(Feedback::default().narrow(&[1.0; 4]).unwrap().0)
}

#[test]
fn a_delta_of_another_length_is_as_if_it_had_not_come() {
    let mut room = Room::new(1..5);
    room.pass(at(60));
    let start = room.stands()[0].unwrap();
    for name in 1..4 {
        let message = Message::Contribution { start, delta: long_delta() };
        room.handle(name, Input::Received { from: peer(4), message }, at(60));
    }
    (1..4).for_each(|name| room.learned(name, 0, 1.0, at(60)));
    (61..=90).for_each(|second| room.pass(at(second)));
    assert!(room.stands().iter().all(|stand| stand.unwrap().round == 1), "{:?}", room.stands());
    assert!((room.first_value(1) - 1.0).abs() < 1e-6);
    // Nor does it count where it has come before the state that it is too long for.
    let mut gathered = Gathered::default();
    gathered.contributed(None, (start, peer(4)), Contribution::new(long_delta()));
    gathered.advance(None, start, 3);
    assert!(gathered.get(peer(4)).is_none());
}

#[test]
fn members_that_come_and_go_leave_room_for_what_this_one_has_learned() {
    let state = RunState::begin(vec![0.0; 3]).unwrap();
    let (start, own) = (state.stand(), peer(1));
    let mut member = Member::new(own, settings(), Some(state), Time::START);
    let delta = Arc::new(Feedback::default().narrow(&[1.0; 3]).unwrap().0);
    for name in 10..100 {
        let from = peer(name);
        member.handle(Input::Met { peer: from }, at(1));
        let message = Message::Contribution { start, delta: Arc::clone(&delta) };
        member.handle(Input::Received { from, message }, at(1));
        member.handle(Input::Left { peer: from }, at(1));
    }
    member.handle(Input::Learned { round: 0, values: vec![1.0; 3] }, at(60));
    let told = member.gathered.digests();
    assert_eq!((told.len(), told.contains_key(&own)), (MEMBERS_MAX, true));
}

#[test]
fn what_is_no_number_is_not_told_and_ends_no_round_of_the_others() {
    let mut room = Room::new(1..4);
    room.pass(at(60));
    room.learned(1, 0, f32::NAN, at(60));
    room.learned(2, 0, 1.0, at(60));
    room.learned(3, 0, 1.0, at(60));
    (61..=80).for_each(|second| room.pass(at(second)));
    assert!(room.stands().iter().all(|stand| *stand == room.stands()[0]));
    assert!((room.first_value(1) - 1.0).abs() < 1e-6);
}

#[test]
fn two_that_have_gone_different_ways_come_together_and_others_can_join_them() {
    let mut room = Room::new(1..3);
    let away = RunState::from_parts(0, vec![1.0; 3], vec![0.0; 3]).unwrap();
    room.members.insert(5, Member::new(peer(5), settings(), Some(away), Time::START));
    room.introduce(5, Time::START);
    room.members.remove(&1);
    for name in [2, 5] {
        room.handle(name, Input::Left { peer: peer(1) }, at(1));
    }
    for name in [7, 8, 9] {
        room.members.insert(name, Member::new(peer(name), settings(), None, at(1)));
        room.introduce(name, at(1));
    }
    (2..=20).for_each(|second| room.pass(at(second)));
    assert!(room.stands().iter().all(|stand| *stand == room.stands()[0]), "{:?}", room.stands());
    assert!(room.stands()[0].is_some());
}
