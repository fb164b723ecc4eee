//! Frames, as a terminal would show them.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Modifier;
use umbel_protocol::ModelId;

use super::super::tests::{overview, peer, server};
use super::*;

/// The lines of a terminal of this size.
fn lines(view: &View, columns: u16, rows: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
    terminal.draw(|frame| view.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| (0..columns).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..rows).map(|y| line(y).trim_end().to_owned()).collect()
}

#[test]
fn a_frame_shows_blocks_servers_and_what_has_changed() {
    let mut view = View::default();
    view.update(overview(&[server(1, 0, 2), server(2, 2, 4)]));
    let mut leaving = server(2, 2, 4);
    leaving.draining = true;
    view.update(overview(&[server(1, 0, 2), leaving]));
    let lines = lines(&view, 110, 14);
    assert_eq!(lines[0], "umbel: 2 servers");
    assert_eq!(lines[1], "a-model (4 blocks), id 0707070707070707");
    assert_eq!(lines[2], "servers 1100");
    let row = |words: &str| words.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let name = peer(1).to_string();
    let short = &name[name.len() - 12..];
    assert_eq!(row(&lines[4]), row(&format!("0..2 ##.. {short} 0.1.0 50.0 1.5 512 3")));
    assert!(lines[5].starts_with("2..4      ..##") && lines[5].ends_with("leaving"), "{lines:#?}");
    assert!(lines.iter().any(|line| line.ends_with("is about to leave 2..4")), "{lines:#?}");
    assert_eq!(lines[13], "q quits, arrows scroll");
}

#[test]
fn what_nobody_serves_stands_out() {
    let mut view = View::default();
    view.update(overview(&[server(1, 0, 2)]));
    let mut terminal = Terminal::new(TestBackend::new(60, 10)).unwrap();
    terminal.draw(|frame| view.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let reversed = |x| buffer[(x, 2)].modifier.contains(Modifier::REVERSED);
    assert_eq!((8..12).map(reversed).collect::<Vec<_>>(), [false, false, true, true]);
}

#[test]
fn a_picture_that_could_not_be_renewed_says_so_and_stays() {
    let mut view = View::default();
    assert_eq!(lines(&view, 80, 10)[1], "asking the swarm");
    view.update(overview(&[server(1, 0, 4)]));
    view.stale("nobody answers");
    let shown = lines(&view, 80, 10);
    assert_eq!(shown[0], "umbel: 1 server  (as it was: nobody answers)");
    assert!(shown[4].starts_with("0..4"), "{shown:#?}");
    view.update(Overview::default());
    let shown = lines(&view, 80, 10);
    assert_eq!(
        (shown[0].as_str(), shown[1].as_str()),
        ("umbel: 0 servers", "nobody serves anything")
    );
}

#[test]
fn no_terminal_is_too_small_and_scrolling_has_two_ends() {
    let mut view = View::default();
    view.update(overview(&(1..=20).map(|number| server(number, 0, 4)).collect::<Vec<_>>()));
    view.update(overview(&[server(1, 0, 4), server(2, 0, 1)]));
    for (columns, rows) in [(1, 1), (3, 2), (20, 5), (200, 60)] {
        let _shown = lines(&view, columns, rows);
    }
    view.wish(Wish::Up);
    assert!(lines(&view, 80, 30)[4].starts_with("0..1"));
    for _ in 0..5 {
        view.wish(Wish::Down);
    }
    assert!(lines(&view, 80, 30)[4].starts_with("0..4"), "one server stays in sight");
}

#[test]
fn a_view_that_is_scrolled_shows_who_is_left_when_others_have_gone() {
    let servers: Vec<_> = (1..=20).map(|number| server(number, 0, 4)).collect();
    let (mut one, mut two) = (View::default(), View::default());
    let mut other = server(3, 0, 4);
    other.model = ModelId::from_bytes([9; 32]);
    for view in [&mut one, &mut two] {
        view.update(overview(&servers));
        (0..19).for_each(|_| view.wish(Wish::Down));
    }
    one.update(overview(&servers[..2]));
    two.update(overview(&[server(1, 0, 4), server(2, 0, 4), other]));
    for view in [one, two] {
        assert!(lines(&view, 80, 30)[4].starts_with("0..4"), "{:#?}", lines(&view, 80, 30));
    }
}

#[test]
fn many_blocks_share_a_column_and_the_fewest_servers_count() {
    let mut wide = server(1, 0, 90);
    wide.block_count = 100;
    let mut view = View::default();
    view.update(overview(&[wide]));
    let strip = &lines(&view, 58, 10)[2];
    assert_eq!(strip, &format!("servers {}{}", "1".repeat(45), "0".repeat(5)));
}
