//! `flow-agent top`: the flows with the most traffic, drawn anew every second. q ends it, space holds it.

use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row, Table};

use super::Socket;
use super::client::{self, AskError};
use super::filters::Filters;
use super::text::{grouped, rate};
use crate::api::{Ranked, Reply, Request, Top};

/// What `top` takes.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    filters: Filters,
}

/// More rows than any terminal has.
const ROWS: usize = 200;

/// How long a key waits at most.
const KEYS: Duration = Duration::from_millis(100);

/// Shows the flows until a key ends it.
pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let request = Request::Top { filter: options.filters.expression(), rows: ROWS };
    let mut replies = client::ask(&options.socket.path()?, &request)?;
    // The first reply tells whether the filter was understood, before the screen is cleared.
    let mut shown = match replies.next()? {
        Some(Reply::Top(top)) => top,
        _ => Top::default(),
    };
    let (sender, frames) = mpsc::channel();
    std::thread::spawn(move || while sender.send(replies.next()).is_ok() {});
    let mut terminal = ratatui::try_init()?;
    let outcome = loop {
        if let Err(error) = terminal.draw(|frame| draw(frame, &shown)) {
            break Err(error.into());
        }
        match turn(&frames, &mut shown) {
            Ok(true) => {}
            Ok(false) => break Ok(ExitCode::SUCCESS),
            Err(error) => break Err(error),
        }
    };
    ratatui::try_restore()?;
    outcome
}

/// Waits for a key or a frame; false at the end.
fn turn(frames: &Receiver<Result<Option<Reply>, AskError>>, shown: &mut Top) -> Result<bool> {
    if event::poll(KEYS)?
        && let Event::Key(key) = event::read()?
        && key.kind == KeyEventKind::Press
    {
        let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
        if control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
            return Ok(false);
        }
        if key.code == KeyCode::Char(' ') {
            // Held: until the next key nothing is drawn anew.
            while !matches!(event::read()?, Event::Key(key) if key.kind == KeyEventKind::Press) {}
        }
    }
    loop {
        match frames.try_recv() {
            Ok(reply) => match reply? {
                Some(Reply::Top(top)) => *shown = top,
                Some(_) => {}
                None => return Ok(false),
            },
            Err(TryRecvError::Empty) => return Ok(true),
            Err(TryRecvError::Disconnected) => return Ok(false),
        }
    }
}

fn draw(frame: &mut Frame<'_>, top: &Top) {
    let [head, body] = Layout::vertical([Constraint::Length(1), Constraint::Min(1)]).areas(frame.area());
    let summary = format!(
        "{} active flows, {}, {} packets/s   (q ends, space holds)",
        grouped(top.active),
        rate(top.bits),
        grouped(top.packets)
    );
    frame.render_widget(Line::from(summary), head);
    let header = Row::new(["RATE", "PACKETS/S", "PROTO", "SOURCE", "DESTINATION", "SERVICE"])
        .style(Style::new().add_modifier(Modifier::BOLD));
    let widths = [
        Constraint::Length(12),
        Constraint::Length(10),
        Constraint::Length(6),
        Constraint::Fill(3),
        Constraint::Fill(3),
        Constraint::Fill(2),
    ];
    frame.render_widget(Table::new(top.rows.iter().map(line), widths).header(header), body);
}

fn line(ranked: &Ranked) -> Row<'static> {
    let row = &ranked.row;
    Row::new(
        [
            rate(ranked.bits),
            grouped(ranked.packets),
            row.protocol_name(),
            row.src.name(),
            row.dst.name(),
            row.service.clone(),
        ]
        .map(Cell::from),
    )
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::api::{End, Row};

    #[test]
    fn the_screen_fits_its_width() {
        let src = End {
            addr: Some([10, 0, 1, 2].into()),
            port: Some(40_000),
            namespace: "shop".into(),
            pod: "web".into(),
            ..End::default()
        };
        let dst = End { addr: Some([10, 0, 2, 3].into()), port: Some(5_432), ..End::default() };
        let row = Row { src, dst, service: "shop/db:sql".into(), protocol: 6, ..Row::default() };
        let top = Top {
            active: 12_345,
            bits: 1_500_000_000,
            packets: 98_765,
            rows: vec![Ranked { bits: 1_200_000_000, packets: 80_000, row }],
        };
        let mut terminal = Terminal::new(TestBackend::new(100, 5)).unwrap();
        terminal.draw(|frame| draw(frame, &top)).unwrap();
        insta::assert_snapshot!(terminal.backend());
    }
}
