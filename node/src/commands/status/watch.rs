//! The swarm as it changes: a view on a terminal, lines elsewhere.

use std::io::{IsTerminal as _, Write as _, stdout};
use std::time::Duration;

use anyhow::Context as _;
use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::DefaultTerminal;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};
use umbel_client::Swarm;
use umbel_client::swarm::unix_time;
use umbel_protocol::announcement::Announcement;

use super::look;
use crate::overview;
use crate::overview::view::{View, Wish};
use crate::shutdown::Shutdown;

/// How old the newest announcement may be: servers say every ten seconds that they are there, so that
/// one of these may be lost.
const SILENCE_MAX: Duration = Duration::from_secs(25);

/// How often the thread that reads keys looks whether anybody still wants them.
const KEYS_WAIT: Duration = Duration::from_millis(200);

/// Keys that wait for a frame to be drawn.
const KEYS_WAITING_MAX: usize = 16;

/// What a key means here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Quit,
    Wish(Wish),
    /// The terminal has another size.
    Redraw,
}

/// Shows the swarm until a key or a signal ends it.
pub(super) async fn run(swarm: &Swarm, seconds: u64) -> anyhow::Result<()> {
    let mut stop = Shutdown::listen().context("signals cannot be caught")?;
    let mut ticks = interval(Duration::from_secs(seconds));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    if !stdout().is_terminal() {
        return print(swarm, &mut ticks, &mut stop).await;
    }
    let mut terminal = ratatui::try_init().context("the terminal cannot be drawn on")?;
    let result = show(swarm, &mut ticks, &mut stop, &mut terminal).await;
    ratatui::try_restore().context("the terminal cannot be left as it was")?;
    result
}

/// Prints a table, and another one after each interval.
async fn print(swarm: &Swarm, ticks: &mut Interval, stop: &mut Shutdown) -> anyhow::Result<()> {
    loop {
        let looking = async {
            ticks.tick().await;
            look(swarm).await
        };
        let (_, overview) = tokio::select! {
            looked = looking => looked,
            _ = stop.requested() => return Ok(()),
        };
        let mut out = stdout();
        writeln!(out, "{}\n", overview::text(&overview))
            .and_then(|()| out.flush())
            .context("stdout is closed")?;
    }
}

async fn show(
    swarm: &Swarm,
    ticks: &mut Interval,
    stop: &mut Shutdown,
    terminal: &mut DefaultTerminal,
) -> anyhow::Result<()> {
    let mut keys = read_keys();
    let mut view = View::default();
    loop {
        let mut looking = std::pin::pin!(async {
            ticks.tick().await;
            look(swarm).await
        });
        let (servers, overview) = loop {
            terminal.draw(|frame| view.draw(frame)).context("the terminal is gone")?;
            tokio::select! {
                looked = &mut looking => break looked,
                key = keys.recv() => match key {
                    Some(Key::Wish(wish)) => view.wish(wish),
                    Some(Key::Redraw) => {}
                    Some(Key::Quit) | None => return Ok(()),
                },
                _ = stop.requested() => return Ok(()),
            }
        };
        view.update(overview);
        if let Some(silence) = silence(&servers).filter(|silence| *silence > SILENCE_MAX) {
            view.stale(&format!("no news for {} s", silence.as_secs()));
        }
    }
}

/// Since when nobody has said anything new.
fn silence(servers: &[Announcement]) -> Option<Duration> {
    let newest = servers.iter().map(|server| server.issued).max()?;
    Some(unix_time().since_epoch().saturating_sub(newest.since_epoch()))
}

/// A thread that reads keys until nobody wants them.
fn read_keys() -> mpsc::Receiver<Key> {
    let (tell, keys) = mpsc::channel(KEYS_WAITING_MAX);
    std::thread::spawn(move || {
        while !tell.is_closed() {
            match event::poll(KEYS_WAIT) {
                Ok(false) => continue,
                Ok(true) => {}
                Err(_) => return,
            }
            let Ok(event) = event::read() else { return };
            if let Some(key) = meaning(&event)
                && tell.blocking_send(key).is_err()
            {
                return;
            }
        }
    });
    keys
}

/// Keys without a modifier that mean something.
const MEANINGS: [(KeyCode, Key); 6] = [
    (KeyCode::Char('q'), Key::Quit),
    (KeyCode::Esc, Key::Quit),
    (KeyCode::Down, Key::Wish(Wish::Down)),
    (KeyCode::Char('j'), Key::Wish(Wish::Down)),
    (KeyCode::Up, Key::Wish(Wish::Up)),
    (KeyCode::Char('k'), Key::Wish(Wish::Up)),
];

fn meaning(event: &Event) -> Option<Key> {
    let Event::Key(key) = event else {
        return matches!(event, Event::Resize(..)).then_some(Key::Redraw);
    };
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return (key.code == KeyCode::Char('c')).then_some(Key::Quit);
    }
    MEANINGS.iter().find(|(code, _)| *code == key.code).map(|(_, meaning)| *meaning)
}

#[cfg(test)]
mod tests {
    use crossterm::event::KeyEvent;

    use super::*;

    #[test]
    fn keys_quit_and_scroll_and_others_do_nothing() {
        let key = |code, modifiers| meaning(&Event::Key(KeyEvent::new(code, modifiers)));
        let plain = |code| key(code, KeyModifiers::NONE);
        assert_eq!(plain(KeyCode::Char('q')), Some(Key::Quit));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Key::Quit));
        assert_eq!(plain(KeyCode::Char('c')), None);
        assert_eq!(plain(KeyCode::Down), Some(Key::Wish(Wish::Down)));
        assert_eq!(plain(KeyCode::Char('k')), Some(Key::Wish(Wish::Up)));
        assert_eq!(meaning(&Event::Resize(80, 24)), Some(Key::Redraw));
        assert_eq!(meaning(&Event::FocusGained), None);
    }
}
