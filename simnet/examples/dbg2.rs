//! Experiment.
#![allow(clippy::all, clippy::pedantic, missing_docs)]
use umbel_coordinator::random::Random;
use umbel_coordinator::swarm::placement::{Own, ServedSpan, View, propose};
use umbel_protocol::{PeerId, Span};
fn main() {
    let a: Vec<u64> = std::env::args().skip(1).map(|a| a.parse().unwrap()).collect();
    let text = std::fs::read_to_string("/tmp/st.txt").unwrap();
    let line = text.lines().nth(a[0] as usize).unwrap();
    let mut w = line.split(' ');
    let name: Vec<&str> = (0..4).map(|_| w.next().unwrap()).collect();
    let mut f = w.map(|x| x.parse::<f64>().unwrap());
    let b = f.next().unwrap() as u32;
    let (_, _, _, n) =
        (f.next().unwrap(), f.next().unwrap(), f.next().unwrap(), f.next().unwrap() as usize);
    let mut servers = vec![];
    for i in 0..n {
        let rate = f.next().unwrap();
        let l = f.next().unwrap() as u32;
        let h = f.next().unwrap() as u32;
        f.next();
        let s = f.next().unwrap() as u32;
        servers.push(ServedSpan {
            peer: PeerId::from_public_key([i as u8; 32]),
            span: Some(Span::new(s, s + l).unwrap()),
            moving_to: None,
            rate,
            held_max: h,
        });
    }
    let me = servers.remove(0);
    let own = Own {
        rate: me.rate,
        block_limit: me.span.unwrap().block_count(),
        missing_bytes: &[],
        bytes_per_second: 0.0,
    };
    let view = View::new(b, servers);
    let mut r = Random::new(1);
    let mut found = 0;
    for _ in 0..a[1] {
        if propose(&view, &own, me, &mut r).is_some() {
            found += 1;
        }
    }
    println!("{name:?} b {b} found {found}");
}
