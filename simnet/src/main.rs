//! The command: `cargo run -p umbel-simnet -- --scenario churn --seed 7`.

use std::fs;
use std::io::Write as _;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Parser, ValueEnum};
use umbel_simnet::plot::{Line, Plot};
use umbel_simnet::report::{CSV_HEADER, Report};
use umbel_simnet::scenario::{BUILT_IN, Scenario};
use umbel_simnet::seed::Seed;
use umbel_simnet::table;

/// Seconds that make one point of a timeline.
const TIMELINE_SECONDS: usize = 10;

/// Whole networks of Umbel in virtual time.
#[derive(Debug, Parser)]
#[command(name = "umbel-simnet")]
struct Args {
    /// Run a scenario: the name of a built-in one, or a file.
    #[arg(long, required_unless_present_any = ["table", "list"])]
    scenario: Option<String>,
    /// The built-in scenarios.
    #[arg(long)]
    list: bool,
    /// The seed of the run.
    #[arg(long, default_value_t = 0, conflicts_with = "seeds")]
    seed: u64,
    /// Several runs: from the first seed to the one before the second, as in `0..50`.
    #[arg(long, value_parser = parse_range)]
    seeds: Option<Range<u64>>,
    /// Write one line for each run.
    #[arg(long)]
    csv: Option<PathBuf>,
    /// Draw the timeline of the first run, or the figure of a table.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Compute a table: of the Petals paper, of a prompt through several stages, or of trainers.
    #[arg(long, value_enum, conflicts_with_all = ["scenario", "csv"])]
    table: Option<TableName>,
    /// Runs of each cell of a table.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TableName {
    /// Generation while servers fail.
    Failures,
    /// The time from token to token while servers fail.
    Gaps,
    /// One stream over simulated networks.
    Network,
    /// A prompt through stages that work at once.
    Prefill,
    /// Trainers who share an adapter, leave and lie.
    Averaging,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let mut out = std::io::stdout().lock();
    if args.list {
        for (name, text) in BUILT_IN {
            writeln!(out, "{name:10} {}", Scenario::parse(text)?.about)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let plot = match args.table {
        Some(TableName::Failures) => {
            let table = table::failures::table(args.runs);
            write!(out, "{table}")?;
            args.svg.is_some().then(|| table::failures::kept_plot(args.runs))
        }
        Some(TableName::Gaps) => {
            let gaps = table::failures::all_gaps(args.runs);
            write!(out, "{}", table::failures::gap_table(&gaps))?;
            Some(table::failures::gap_plot(&gaps))
        }
        Some(TableName::Network) => {
            write!(out, "{}", table::network::table())?;
            None
        }
        Some(TableName::Prefill) => {
            write!(out, "{}", table::prefill::table())?;
            None
        }
        Some(TableName::Averaging) => {
            write!(out, "{}", table::averaging::table(args.runs))?;
            None
        }
        None => return run(&args, &mut out),
    };
    match (&args.svg, plot) {
        (Some(file), Some(plot)) => {
            fs::write(file, plot.svg()?).with_context(|| format!("writing {}", file.display()))?;
        }
        (Some(_), None) => bail!("this table has no figure"),
        (None, _) => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn run(args: &Args, out: &mut impl std::io::Write) -> anyhow::Result<ExitCode> {
    let name = args.scenario.as_deref().context("which scenario?")?;
    let scenario = match BUILT_IN.into_iter().find(|(of, _)| *of == name) {
        Some((_, text)) => Scenario::parse(text)?,
        None => {
            let text = fs::read_to_string(name)
                .with_context(|| format!("{name} is neither a built-in scenario nor a file"))?;
            Scenario::parse(&text).with_context(|| format!("in {name}"))?
        }
    };
    let seeds = args.seeds.clone().unwrap_or(args.seed..args.seed + 1);
    let (mut csv, mut first, mut sound) = (CSV_HEADER.to_owned(), None, true);
    for seed in seeds {
        let mut world = scenario.build(Seed(seed))?;
        world.run();
        let report = Report::of(seed, &world);
        write!(out, "{report}")?;
        csv.push_str(&report.csv());
        sound &= report.is_sound();
        first.get_or_insert(report);
    }
    if let Some(file) = &args.csv {
        fs::write(file, csv).with_context(|| format!("writing {}", file.display()))?;
    }
    if let (Some(file), Some(report)) = (&args.svg, first) {
        let svg = timeline(name, &report).svg()?;
        fs::write(file, svg).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn timeline(name: &str, report: &Report) -> Plot {
    let rate = |(number, seconds): (usize, &[u32])| {
        let at = u32::try_from(number * TIMELINE_SECONDS).unwrap_or(u32::MAX);
        let tokens: u32 = seconds.iter().sum();
        (f64::from(at), f64::from(tokens) / 10.0)
    };
    let points = report.timeline.chunks(TIMELINE_SECONDS).enumerate().map(rate).collect();
    Plot {
        title: format!("{name}, seed {}: tokens a second of all clients", report.seed),
        x: "second".to_owned(),
        y: "tokens a second".to_owned(),
        log_x: false,
        lines: vec![Line { name: "tokens".to_owned(), points }],
    }
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let ends = text.split_once("..").and_then(|(from, to)| {
        Some((from.trim().parse::<u64>().ok()?, to.trim().parse::<u64>().ok()?))
    });
    match ends {
        Some((from, to)) if from < to => Ok(from..to),
        Some(_) | None => Err("seeds are written as in 0..50".to_owned()),
    }
}
