//! `stocklock order import`: places the orders of a file as one stream of lines, and accounts for
//! each line.

mod answers;
#[cfg(test)]
mod fuzz;
mod lines;
mod pace;
mod tally;

use std::{
    collections::VecDeque,
    fs::File,
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use hdrhistogram::Histogram;
use hyper::body::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Client, StatusCode};

use self::{
    answers::{is_ambiguous, result_of},
    lines::{DigestedFile, FileLine, FileLines},
    pace::{MAX_FAILURES, Next, Pace},
    tally::{LineResult, Tally},
};
use super::{
    Answer, Output,
    order::{self, BatchStream, LineAnswer, StreamFailure, batch_client},
};
use crate::config::Config;

/// Most bytes of the lines in flight, one line more at most.
const MAX_BYTES_IN_FLIGHT: usize = 4 << 20;
/// How long no answer may arrive before the request is ended: a proxy may wait for its end.
const MAX_STALL: Duration = Duration::from_secs(6);
/// How long no answer may arrive to a request that is ended.
const MAX_SILENCE: Duration = Duration::from_secs(30);
/// Most reports of failures.
const MAX_REPORTS: u32 = 10;

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// NDJSON file, or /dev/stdin
    file: PathBuf,
    /// Most lines that are sent and not answered yet
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(1..=4096))]
    concurrency: u16,
    /// Wait up to this time, such as 5s, for each outcome
    #[arg(long, value_name = "TIME", value_parser = order::wait)]
    wait: Option<Duration>,
    /// Begin of the idempotency keys of lines without an id and a key; without it, a digest
    /// of the whole file. The same file with another prefix makes new orders
    #[arg(long, value_name = "NAME", value_parser = order::key_prefix)]
    key_prefix: Option<String>,
}

/// A line that has no final answer yet.
struct Line {
    number: u64,
    content: Bytes,
    attempts: u32,
    /// Whether an attempt perhaps saved the order.
    is_maybe_saved: bool,
}

struct SentLine {
    line: Line,
    at: Instant,
}

/// A running import.
struct Import<'a> {
    args: &'a ImportArgs,
    client: Client,
    url: String,
    key_prefix: String,
    input: FileLines,
    has_input: bool,
    stream: Option<BatchStream>,
    /// The lines of the stream that are not answered yet, in their order.
    in_flight: VecDeque<SentLine>,
    bytes_in_flight: usize,
    /// Lines that are sent again before others are read.
    again: VecDeque<Line>,
    pace: Pace,
    /// When an answer arrived last, or was first awaited.
    heard_at: Instant,
    /// Whether a proxy passes on no request before its end.
    is_held_back: bool,
    /// Then the rest of the file is counted, and not sent.
    is_server_away: bool,
    reports: u32,
    tally: Tally,
    latencies: Histogram<u64>,
    progress: ProgressBar,
}

enum Event {
    Answer(Result<Option<LineAnswer>, StreamFailure>),
    Line(io::Result<Option<FileLine>>),
    PauseEnded,
    Silence,
}

/// Places the orders of a file. A line that the server refuses does not stop the import. If no
/// server can be reached, the rest of the file is only counted. Fails if the file cannot be read.
pub(super) async fn run(
    args: &ImportArgs,
    config: &Config,
    output: Output,
) -> anyhow::Result<Answer> {
    let (input, key_prefix, progress) =
        open(args).await.with_context(|| args.file.display().to_string())?;
    let mut import = Import {
        args,
        client: batch_client(config)?,
        url: format!("{}/v1/orders:batch", config.client.url),
        key_prefix,
        input,
        has_input: true,
        stream: None,
        in_flight: VecDeque::new(),
        bytes_in_flight: 0,
        again: VecDeque::new(),
        pace: Pace::default(),
        heard_at: Instant::now(),
        is_held_back: false,
        is_server_away: false,
        reports: 0,
        tally: Tally::default(),
        latencies: Histogram::new_with_max(600_000_000, 3)?,
        progress,
    };
    let begun = Instant::now();
    let read = import.place_all().await;
    import.progress.finish_and_clear();
    import.tally.print(begun.elapsed(), &import.latencies, &import.key_prefix, output);
    read.with_context(|| args.file.display().to_string())?;
    Ok(import.tally.answer())
}

/// Opens the file, and chooses the prefix of its keys. A pipe is streamed only with a prefix:
/// otherwise the whole file is read first.
async fn open(args: &ImportArgs) -> anyhow::Result<(FileLines, String, ProgressBar)> {
    let is_file = tokio::fs::metadata(&args.file).await?.is_file();
    if let (Some(prefix), false) = (&args.key_prefix, is_file) {
        let style = "{spinner} {pos} lines answered, {per_sec}, {elapsed}";
        let progress = ProgressBar::new_spinner().with_style(ProgressStyle::with_template(style)?);
        return Ok((FileLines::new(File::open(&args.file)?), prefix.clone(), progress));
    }
    let path = args.file.clone();
    let digesting = tokio::task::spawn_blocking(move || lines::digest(&path));
    let DigestedFile { file, digest, lines } = digesting.await??;
    let style = "{bar:40} {pos}/{len} lines answered, {per_sec}, {eta} left";
    let progress = ProgressBar::new(lines).with_style(ProgressStyle::with_template(style)?);
    Ok((FileLines::new(file), args.key_prefix.clone().unwrap_or(digest), progress))
}

impl Import<'_> {
    /// Fails if the file cannot be read, after the lines before the error are answered.
    async fn place_all(&mut self) -> io::Result<()> {
        let mut read = Ok(());
        loop {
            if self.may_send()
                && let Some(line) = self.again.pop_front()
            {
                self.send(line);
                continue;
            }
            if self.has_no_more_lines() && self.in_flight.is_empty() {
                return read;
            }
            self.finish_early();
            match self.next_event().await {
                Event::Answer(Ok(Some(answer))) => self.take(&answer),
                Event::Answer(Ok(None)) => self.stream_ended(None),
                Event::Answer(Err(failure)) => self.stream_ended(Some(failure)),
                Event::Line(Ok(Some(line))) => self.read(line),
                Event::Line(Ok(None)) => self.has_input = false,
                Event::Line(Err(error)) => {
                    self.has_input = false;
                    read = Err(error);
                }
                Event::PauseEnded => self.pace.resume(),
                Event::Silence => self.silence(),
            }
        }
    }

    async fn next_event(&mut self) -> Event {
        let may_read = self.has_input && (self.may_send() || self.is_server_away);
        let paused_until = self.pace.paused_until();
        let silence_at = self.silence_at();
        tokio::select! {
            biased;
            answer = next_answer(self.stream.as_mut()) => Event::Answer(answer),
            line = self.input.next(), if may_read => Event::Line(line),
            () = until(paused_until) => Event::PauseEnded,
            () = until(silence_at) => Event::Silence,
        }
    }

    fn may_send(&self) -> bool {
        self.pace.paused_until().is_none()
            && self.in_flight.len() < self.args.concurrency.into()
            && self.bytes_in_flight < MAX_BYTES_IN_FLIGHT
            && self.stream.as_ref().is_none_or(|stream| !stream.is_finished())
    }

    fn has_no_more_lines(&self) -> bool {
        !self.has_input && self.again.is_empty()
    }

    fn silence_at(&self) -> Option<Instant> {
        let awaits = |stream: &&BatchStream| stream.is_finished() || !self.in_flight.is_empty();
        let stream = self.stream.as_ref().filter(awaits)?;
        let most = if stream.is_finished() { MAX_SILENCE } else { MAX_STALL };
        Some(self.heard_at + most + self.args.wait.unwrap_or_default())
    }

    /// Ends the request where nothing more can be sent on it now.
    fn finish_early(&mut self) {
        let is_window_full = self.in_flight.len() >= self.args.concurrency.into();
        let is_due = self.has_no_more_lines() || (self.is_held_back && is_window_full);
        if is_due
            && let Some(stream) = &mut self.stream
            && !stream.is_finished()
        {
            stream.finish();
            self.heard_at = Instant::now();
        }
    }

    fn read(&mut self, line: FileLine) {
        self.tally.read += 1;
        let FileLine { number, content } = line;
        let Some(content) = content else {
            let detail = "the line is too long; it was not sent".to_owned();
            let refused = LineResult::Refused(StatusCode::PAYLOAD_TOO_LARGE, detail);
            return self.account(number, refused);
        };
        if self.is_server_away {
            self.tally.unplaced += 1;
            return;
        }
        let content = lines::with_identity(&content, number, &self.key_prefix);
        self.send(Line { number, content, attempts: 0, is_maybe_saved: false });
    }

    fn send(&mut self, mut line: Line) {
        let (client, url, most) = (&self.client, &self.url, self.args.concurrency.into());
        let stream =
            self.stream.get_or_insert_with(|| BatchStream::open(client, url, self.args.wait, most));
        stream.send(line.content.clone());
        line.attempts += 1;
        if self.in_flight.is_empty() {
            self.heard_at = Instant::now();
        }
        self.bytes_in_flight += line.content.len();
        self.in_flight.push_back(SentLine { line, at: Instant::now() });
    }

    /// Takes the answer to the first line in flight. An answer to no line ends the stream: ingest
    /// stops, or has received nothing for long.
    fn take(&mut self, answer: &LineAnswer) {
        let Some(SentLine { mut line, at }) = self.in_flight.pop_front() else {
            self.stream = None;
            return;
        };
        self.bytes_in_flight -= line.content.len();
        self.heard_at = Instant::now();
        let Some(result) = result_of(answer) else {
            self.pace.answered(false);
            line.is_maybe_saved |= is_ambiguous(answer.status);
            let why = format!("{}: {}", answer.status, answer.detail());
            self.repeat(line, &why);
            return self.failed(&format!("a line is answered with {why}"), Duration::ZERO);
        };
        self.pace.answered(true);
        let micros = u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.latencies.saturating_record(micros);
        // After an attempt whose result is unknown, the order is that of this import.
        self.tally.replayed += u64::from(answer.idempotent_replayed && !line.is_maybe_saved);
        self.account(line.number, result);
    }

    /// Sends the line again, or gives it up.
    fn repeat(&mut self, line: Line, why: &str) {
        if line.attempts < MAX_FAILURES {
            self.again.push_back(line);
        } else {
            self.give_up_line(line, why);
        }
    }

    fn stream_ended(&mut self, failure: Option<StreamFailure>) {
        self.stream = None;
        if self.in_flight.is_empty() {
            let Some(failure) = failure else { return };
            return self.failed(&format!("{:#}", failure.error), failure.retry_after);
        }
        let failure = failure.unwrap_or_else(|| {
            let why = "the server ended the stream before it answered each line";
            StreamFailure::broken(anyhow::anyhow!(why))
        });
        let why = format!("{:#}", failure.error);
        self.bytes_in_flight = 0;
        let is_maybe_saved = failure.is_maybe_saved;
        for SentLine { mut line, .. } in std::mem::take(&mut self.in_flight) {
            line.is_maybe_saved |= is_maybe_saved;
            self.repeat(line, &why);
        }
        if failure.is_transient {
            self.failed(&why, failure.retry_after);
        } else {
            self.give_up(&why);
        }
    }

    fn silence(&mut self) {
        match &mut self.stream {
            Some(stream) if !stream.is_finished() => {
                stream.finish();
                self.is_held_back = true;
                self.heard_at = Instant::now();
            }
            _ => {
                let error = anyhow::anyhow!("no answer for {} s", MAX_SILENCE.as_secs());
                let failure = StreamFailure::broken(error.context(self.url.clone()));
                self.stream_ended(Some(failure));
            }
        }
    }

    fn failed(&mut self, why: &str, retry_after: Duration) {
        match self.pace.failed(retry_after) {
            Next::Pause if self.pace.is_first_failure() && self.reports < MAX_REPORTS => {
                self.reports += 1;
                self.progress.suspend(|| eprintln!("{why}; sending again what is not answered"));
            }
            Next::Pausing | Next::Pause => {}
            Next::GiveUp => self.give_up(why),
        }
    }

    /// Sends nothing more.
    fn give_up(&mut self, why: &str) {
        self.stream = None;
        self.is_server_away = true;
        self.bytes_in_flight = 0;
        let mut lines = std::mem::take(&mut self.again);
        for SentLine { mut line, .. } in std::mem::take(&mut self.in_flight) {
            line.is_maybe_saved = true;
            lines.push_back(line);
        }
        lines.make_contiguous().sort_by_key(|line| line.number);
        for line in lines {
            self.give_up_line(line, why);
        }
    }

    fn give_up_line(&mut self, line: Line, why: &str) {
        let why = why.to_owned();
        let result =
            if line.is_maybe_saved { LineResult::Unknown(why) } else { LineResult::Unplaced(why) };
        self.account(line.number, result);
    }

    fn account(&mut self, number: u64, result: LineResult) {
        self.tally.add(number, result, &self.progress);
        self.progress.inc(1);
    }
}

async fn next_answer(
    stream: Option<&mut BatchStream>,
) -> Result<Option<LineAnswer>, StreamFailure> {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

/// Waits until an instant, or for ever.
async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}
