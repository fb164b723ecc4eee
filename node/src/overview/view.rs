//! The picture on a terminal: a frame from what is known, and nothing else.

use std::collections::VecDeque;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span as Piece};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table};

use super::{Change, ModelOverview, Overview, ServerOverview, changes, milliseconds};

/// Changes that are remembered: more than fit on a terminal.
const CHANGES_MAX: usize = 64;

/// Lines of changes that are shown where there are some.
const CHANGES_SHOWN_MAX: u16 = 6;

/// Columns in which a server's blocks are drawn.
const BAR_COLUMNS: u32 = 24;

/// What a terminal shows.
#[derive(Debug, Default)]
pub struct View {
    overview: Overview,
    changes: VecDeque<Change>,
    /// Pictures that were taken.
    seen: u64,
    /// Why the last one could not be taken.
    trouble: Option<String>,
    /// Lines that are scrolled away at the top.
    scrolled: usize,
}

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Further lines at the bottom.
    Down,
    /// Further lines at the top.
    Up,
}

impl View {
    /// Takes a new picture up, and notes what is other than before.
    pub fn update(&mut self, overview: Overview) {
        if self.seen > 0 {
            self.changes.extend(changes(&self.overview, &overview));
            let surplus = self.changes.len().saturating_sub(CHANGES_MAX);
            self.changes.drain(..surplus);
        }
        self.overview = overview;
        // Those who were scrolled to may have gone.
        self.scrolled = self.scrolled.min(self.scrolled_max());
        self.seen += 1;
        self.trouble = None;
    }

    /// Says that no new picture could be taken: the last one stays.
    pub fn stale(&mut self, why: &str) {
        self.trouble = Some(why.to_owned());
    }

    /// Scrolls.
    pub fn wish(&mut self, wish: Wish) {
        self.scrolled = match wish {
            Wish::Down => (self.scrolled + 1).min(self.scrolled_max()),
            Wish::Up => self.scrolled.saturating_sub(1),
        };
    }

    /// With that, the last server is in sight.
    fn scrolled_max(&self) -> usize {
        self.overview.server_count().saturating_sub(1)
    }

    /// Draws all of it.
    pub fn draw(&self, frame: &mut Frame) {
        let shown = u16::try_from(self.changes.len()).unwrap_or(u16::MAX).min(CHANGES_SHOWN_MAX);
        let changes = if shown == 0 { 0 } else { shown + 1 };
        let [title, body, news, help] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Min(4),
            Constraint::Length(changes),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(self.title(), title);
        self.draw_models(frame, body);
        self.draw_changes(frame, news, usize::from(shown));
        frame.render_widget(Line::from("q quits, arrows scroll"), help);
    }

    fn title(&self) -> Line<'static> {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let servers = self.overview.server_count();
        let plural = if servers == 1 { "" } else { "s" };
        let mut pieces = vec![Piece::styled(format!("umbel: {servers} server{plural}"), bold)];
        if let Some(trouble) = &self.trouble {
            pieces.push(Piece::raw(format!("  (as it was: {trouble})")));
        }
        Line::from(pieces)
    }

    fn draw_models(&self, frame: &mut Frame, area: Rect) {
        if self.overview.models.is_empty() {
            let text = if self.seen == 0 { "asking the swarm" } else { "nobody serves anything" };
            frame.render_widget(Paragraph::new(text), area);
            return;
        }
        let mut area = area;
        let mut scrolled = self.scrolled;
        for model in &self.overview.models {
            let rows = model.servers.len();
            if scrolled >= rows && rows < self.overview.server_count() {
                scrolled -= rows;
                continue;
            }
            // Two lines above the table, one of names in it, and one of space below.
            let wanted = u16::try_from(rows - scrolled + 4).unwrap_or(u16::MAX);
            let [own, rest] =
                Layout::vertical([Constraint::Length(wanted.min(area.height)), Constraint::Min(0)])
                    .areas(area);
            draw_model(frame, own, model, scrolled);
            (area, scrolled) = (rest, 0);
            if area.height < 4 {
                return;
            }
        }
    }

    fn draw_changes(&self, frame: &mut Frame, area: Rect, shown: usize) {
        let first = self.changes.len().saturating_sub(shown);
        let lines: Vec<_> =
            self.changes.iter().skip(first).map(|change| Line::from(change.to_string())).collect();
        let block = Block::new().borders(Borders::TOP).title("what has changed");
        frame.render_widget(Paragraph::new(lines).block(block), area);
    }
}

fn draw_model(frame: &mut Frame, area: Rect, model: &ModelOverview, scrolled: usize) {
    let [name, strip, servers] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(1), Constraint::Min(0)])
            .areas(area);
    let id = model.id.to_string();
    let heading = format!(
        "{} ({} blocks), id {}",
        model.name,
        model.block_count,
        id.get(..16).unwrap_or(&id)
    );
    frame.render_widget(Line::styled(heading, Style::new().add_modifier(Modifier::BOLD)), name);
    frame.render_widget(servers_of_blocks(model, strip.width), strip);
    let names = ["blocks", "", "peer", "version", "decode/s", "ms away", "KV free", "queue", ""];
    let rows = model.servers.iter().skip(scrolled).map(|server| row(server, model.block_count));
    let widths = [
        Constraint::Length(9),
        Constraint::Length(bar_columns(model.block_count)),
        Constraint::Length(12),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(5),
        Constraint::Min(8),
    ];
    let header = Row::new(names).style(Style::new().add_modifier(Modifier::UNDERLINED));
    frame.render_widget(Table::new(rows, widths).header(header), servers);
}

/// A digit for each block, or where they do not fit for each few: by how many servers it is served,
/// and of several blocks the fewest. What nobody serves stands out.
fn servers_of_blocks(model: &ModelOverview, columns: u16) -> Line<'static> {
    let replicas = model.replicas();
    let label = "servers ";
    let room = usize::from(columns).saturating_sub(label.len()).max(1);
    let each = replicas.len().div_ceil(room).max(1);
    let mut pieces = vec![Piece::raw(label)];
    pieces.extend(replicas.chunks(each).map(|blocks| {
        let fewest = blocks.iter().min().copied().unwrap_or(0);
        let digit = if fewest > 9 { "+".to_owned() } else { fewest.to_string() };
        let style = Style::new();
        let style = if fewest == 0 { style.add_modifier(Modifier::REVERSED) } else { style };
        Piece::styled(digit, style)
    }));
    Line::from(pieces)
}

fn bar_columns(block_count: u32) -> u16 {
    u16::try_from(block_count.clamp(1, BAR_COLUMNS)).unwrap_or(1)
}

/// Where the blocks of a server lie in the model.
fn bar(server: &ServerOverview, block_count: u32) -> String {
    let columns = u32::from(bar_columns(block_count));
    let blocks = block_count.max(1);
    let of = |column: u32| {
        let (start, end) = (column * blocks / columns, ((column + 1) * blocks).div_ceil(columns));
        server.span.start() < end && start < server.span.end()
    };
    (0..columns).map(|column| if of(column) { '#' } else { '.' }).collect()
}

fn row(server: &ServerOverview, block_count: u32) -> Row<'static> {
    let peer = server.peer.to_string();
    // The beginning of every name is the same.
    let short = peer.get(peer.len().saturating_sub(12)..).unwrap_or(&peer).to_owned();
    let away = server
        .round_trip
        .map_or_else(|| "?".to_owned(), |round_trip| format!("{:.1}", milliseconds(round_trip)));
    let cells = [
        server.span.to_string(),
        bar(server, block_count),
        short,
        server.version.clone(),
        format!("{:.1}", server.decode_tokens_per_second),
        away,
        server.kv_tokens_free.to_string(),
        server.queue_depth.to_string(),
        server.state(),
    ];
    Row::new(cells.map(Cell::from))
}

#[cfg(test)]
mod tests;
