//! `node run` and `node task`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Value, json};

use super::output;
use super::units::{Amount, bytes, bytes_text, cpu, span, whole};
use super::{Connection, Failure, Output};
use crate::client::{Client, ClientError};
use crate::error::{Context, Fault};
use crate::ids::TaskId;
use crate::limits::{OUTPUT_BYTES_KEPT, TASK_RETRIES_MAX};
use crate::os;
use crate::proto::v1::{
    Attempt, EnvVar, Exit, OutputRequest, Resources, SubmitTaskReply, Task, TaskPhase, TaskSpec, exit::Reason,
    get_task::By,
};
use crate::state::task::{current, is_ended};

/// What a task reserves where nothing is said.
const DEFAULT_CPU: u64 = 100;
const DEFAULT_MEMORY: u64 = 64 << 20;
/// First pause between two looks at a task, doubled up to the longest while nothing happens.
const LOOK_MIN: Duration = Duration::from_millis(10);
const LOOK_MAX: Duration = Duration::from_millis(200);
/// Looks after which a task that waits is spoken of.
const WAITS_TOLD: u32 = 9;
/// Exit statuses of `run` for a task without one of its own, as `timeout` and shells have them.
const TIMED_OUT: i32 = 124;
const NOT_STARTED: i32 = 127;
const LOST: i32 = 125;
const STOPPED: i32 = 130;

/// What is to be run.
#[derive(Args)]
pub struct Spec {
    /// Name, unique among live tasks [default: given by the cluster]
    #[arg(long)]
    name: Option<String>,
    /// Processors it reserves: 2, 0.5 or 500m [default: 100m]
    #[arg(long, value_parser = cpu)]
    cpu: Option<u64>,
    /// Memory it reserves [default: 64Mi]
    #[arg(long, value_parser = bytes)]
    memory: Option<u64>,
    /// Disk it reserves [default: 0]
    #[arg(long, value_parser = bytes)]
    disk: Option<u64>,
    /// What its worker must have; may be given several times
    #[arg(long = "feature")]
    features: Vec<String>,
    /// Variable for its environment, NAME=VALUE; may be given several times
    #[arg(long = "env", value_parser = variable)]
    env: Vec<(String, String)>,
    /// How long each attempt may run: 30s, 5m, 2h
    #[arg(long, value_parser = span)]
    timeout: Option<Duration>,
    /// Failed exits after which it is tried again
    #[arg(long, value_parser = whole::<u32>("number of retries", 0..=TASK_RETRIES_MAX.into()))]
    retries: Option<u32>,
    /// Between the signal to end and the one that kills [default: 5s]
    #[arg(long, value_parser = span)]
    kill_grace: Option<Duration>,
    /// Read the specification from a TOML or JSON file; options on the command line win
    #[arg(long)]
    file: Option<PathBuf>,
    /// The program and its arguments
    #[arg(last = true)]
    command: Vec<String>,
}

/// A specification as a file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SpecFile {
    name: Option<String>,
    command: Vec<String>,
    env: BTreeMap<String, String>,
    cpu: Option<Amount>,
    memory: Option<Amount>,
    disk: Option<Amount>,
    features: Vec<String>,
    timeout: Option<Amount>,
    retries: Option<u32>,
    kill_grace: Option<Amount>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is no variable: write NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

fn read_file(path: &Path) -> Result<SpecFile, Fault> {
    let what = || format!("read the task {}", path.display());
    let text = os::read_text(path).context(what)?;
    match path.extension().is_some_and(|extension| extension == "json") {
        true => serde_json::from_str(&text).context(what),
        false => toml::from_str(&text).context(what),
    }
}

impl Spec {
    fn build(&self) -> Result<TaskSpec, Fault> {
        let file = self.file.as_deref().map(read_file).transpose()?.unwrap_or_default();
        let millis = |span: Option<Duration>| span.map_or(0, |span| span.as_millis() as u64);
        let command = if self.command.is_empty() { file.command } else { self.command.clone() };
        let own = self.env.iter().cloned();
        let env: BTreeMap<String, String> = file.env.into_iter().chain(own).collect();
        Ok(TaskSpec {
            name: self.name.clone().or(file.name).unwrap_or_default(),
            command: with_absolute_program(command)?,
            env: env.into_iter().map(|(name, value)| EnvVar { name, value }).collect(),
            resources: Some(Resources {
                cpu_milli: self.cpu.or(Amount::read("cpu", file.cpu.as_ref(), cpu)?).unwrap_or(DEFAULT_CPU),
                memory_bytes: self
                    .memory
                    .or(Amount::read("memory", file.memory.as_ref(), bytes)?)
                    .unwrap_or(DEFAULT_MEMORY),
                disk_bytes: self.disk.or(Amount::read("disk", file.disk.as_ref(), bytes)?).unwrap_or(0),
            }),
            features: self.features.iter().chain(&file.features).cloned().collect(),
            timeout_ms: millis(self.timeout.or(Amount::read("timeout", file.timeout.as_ref(), span)?)),
            retries: self.retries.or(file.retries).unwrap_or(0),
            kill_grace_ms: millis(self.kill_grace.or(Amount::read("kill_grace", file.kill_grace.as_ref(), span)?)),
        })
    }
}

/// A program named relative to where the user stands is meant from there: the task runs in a directory of its own.
fn with_absolute_program(mut command: Vec<String>) -> Result<Vec<String>, Fault> {
    if let Some(program) = command.first_mut().filter(|program| program.contains('/')) {
        let path = std::path::absolute(&*program).context(|| format!("find {program}"))?;
        *program = path.to_string_lossy().into_owned();
    }
    Ok(command)
}

/// What can be done with tasks.
#[derive(Subcommand)]
pub enum TaskCommand {
    /// Submit a task and return at once
    #[command(after_help = "Examples:\n  \
        node task submit --cpu 500m --memory 64Mi --timeout 30s --retries 2 --name nightly -- ./job.sh\n  \
        node task submit --file nightly.toml")]
    Submit(Spec),
    /// List tasks, the newest last
    List {
        /// Ended ones, too
        #[arg(long)]
        all: bool,
    },
    /// What is known of a task: its phase, its attempts, and why it waits
    Status {
        /// Its name or its id
        task: String,
    },
    /// Print what the latest attempt has written
    Logs {
        /// Its name or its id
        task: String,
        /// Go on until the task has ended
        #[arg(short, long)]
        follow: bool,
        /// An attempt other than the latest, by the number that `status` shows
        #[arg(long, conflicts_with = "follow", value_parser = whole::<u64>("attempt", 1..=u64::MAX))]
        attempt: Option<u64>,
    },
    /// Have a task end
    Stop {
        /// Its name or its id
        task: String,
    },
}

fn by(text: &str) -> By {
    text.parse().map_or_else(|_| By::Name(text.to_owned()), By::Id)
}

async fn find(client: &Client, text: &str) -> Result<(Task, String), Failure> {
    let reply = client.get_task(by(text)).await?;
    let missing = || Failure::Refused(format!("there is no task {text}; see: node task list --all"));
    Ok((reply.found.ok_or_else(missing)?, reply.waiting_for))
}

impl TaskCommand {
    pub(super) async fn run(&self, connection: &Connection) -> Result<(), Failure> {
        let client = connection.client()?;
        let as_json = connection.output == Output::Json;
        match self {
            Self::Submit(spec) => {
                let SubmitTaskReply { id, name, created } = client.submit_task(spec.build()?).await?;
                let document = json!({ "id": id, "name": name, "created": created });
                let row = [id.to_string(), name.clone(), created.to_string()];
                let done = if created { "is submitted" } else { "was submitted before, with the same specification" };
                output::told(connection.output, &document, &row, format_args!("task {name} ({id}) {done}"));
            }
            Self::List { all } => {
                let mut tasks = list(&client).await?;
                tasks.retain(|task| *all || !is_ended(task));
                match as_json {
                    true => output::json(&tasks.iter().map(task_json).collect()),
                    false => {
                        let rows: Vec<_> = tasks.iter().map(task_row).collect();
                        output::table(
                            connection.output,
                            &["ID", "NAME", "PHASE", "WORKER", "FAILED EXITS", "COMMAND"],
                            &rows,
                        );
                    }
                }
            }
            Self::Status { task } => {
                let (task, waiting_for) = find(&client, task).await?;
                match as_json {
                    true => {
                        let mut value = task_json(&task);
                        value["waiting_for"] = json!(waiting_for);
                        output::json(&value);
                    }
                    false => print_task(connection.output, &task, &waiting_for),
                }
            }
            Self::Logs { task, follow: true, .. } => {
                let (task, _) = find(&client, task).await?;
                follow(&client, TaskId(task.id), true).await?;
            }
            Self::Logs { task, attempt, .. } => {
                let (task, waiting_for) = find(&client, task).await?;
                let attempt = match attempt {
                    Some(token) => task.attempts.iter().find(|attempt| attempt.token == *token),
                    None => task.attempts.last(),
                };
                let none = || match waiting_for.is_empty() {
                    true => Failure::Refused("there is no such attempt; see: node task status".into()),
                    false => Failure::Refused(format!("it has not run yet; it waits: {waiting_for}")),
                };
                let token = attempt.ok_or_else(none)?.token;
                let mut offset = 0;
                let request = OutputRequest { task: task.id, token, offset: 0, follow: false };
                copy_output(&client, request, &mut offset, true).await?;
            }
            Self::Stop { task } => {
                let (task, _) = find(&client, task).await?;
                let phase = client.stop_task(TaskId(task.id)).await?;
                let document = json!({ "id": task.id, "phase": phase_name(phase) });
                let row = [task.id.to_string(), phase_name(phase).to_string()];
                let done = match is_ended(&Task { phase: phase.into(), ..Task::default() }) {
                    true => format!("has ended: {}", phase_name(phase)),
                    false => "is stopping".into(),
                };
                output::told(connection.output, &document, &row, format_args!("task {} {done}", name(&task)));
            }
        }
        Ok(())
    }
}

/// `node run`: submits a task, prints what it writes, and ends as it does.
pub(super) async fn run(connection: &Connection, spec: &Spec) -> Result<i32, Failure> {
    let client = connection.client()?;
    let SubmitTaskReply { id, .. } = client.submit_task(spec.build()?).await?;
    let id = TaskId(id);
    let signal = || async { os::stop_signal().await.context(|| "wait for signals".into()) };
    let mut following = std::pin::pin!(follow(&client, id, false));
    let ended = tokio::select! {
        biased;
        result = signal() => result.map(|()| None)?,
        task = &mut following => Some(task?),
    };
    if let Some(task) = ended {
        return Ok(status_of(&task));
    }
    eprintln!("stopping task {id}; a second Ctrl-C leaves it to itself");
    let stop = async {
        client.stop_task(id).await?;
        following.await
    };
    tokio::select! {
        biased;
        result = signal() => result.map(|()| STOPPED).map_err(Failure::from),
        task = stop => Ok(status_of(&task?)),
    }
}

fn status_of(task: &Task) -> i32 {
    let exit = task.attempts.last().and_then(|attempt| attempt.exit.clone()).unwrap_or_default();
    match task.phase() {
        TaskPhase::Succeeded => 0,
        TaskPhase::Stopped => STOPPED,
        TaskPhase::Lost => {
            eprintln!("error: task {} was given up: it was lost {} times", name(task), task.losses);
            LOST
        }
        _ => match exit.reason() {
            Reason::TimedOut => {
                eprintln!("error: task {} ran into its time limit", name(task));
                TIMED_OUT
            }
            Reason::NotStarted => {
                eprintln!("error: task {} could not be started: {}", name(task), exit.message);
                NOT_STARTED
            }
            _ => exit.code.or(exit.signal.map(|signal| 128 + signal)).unwrap_or(1),
        },
    }
}

/// Prints what a task writes, attempt by attempt, until it has ended, or until nobody reads it, if that is all there is to do.
async fn follow(client: &Client, id: TaskId, only_shows: bool) -> Result<Task, Failure> {
    let mut printed = BTreeSet::new();
    let (mut told, mut waited) = (String::new(), 0);
    // How far the output of which attempt is printed.
    let (mut begun, mut offset) = (0, 0);
    let mut pause = LOOK_MIN;
    loop {
        let reply = client.get_task(By::Id(id.0)).await?;
        let task = reply.found.ok_or_else(|| Failure::Refused(format!("task {id} is not remembered any more")))?;
        // A short wait is nothing to speak of.
        waited = if reply.waiting_for.is_empty() { 0 } else { waited + 1 };
        if waited >= WAITS_TOLD && reply.waiting_for != told {
            eprintln!("task {} waits: {}", name(&task), reply.waiting_for);
            told = reply.waiting_for;
        }
        if let Some(token) = task.attempts.last().map(|attempt| attempt.token).filter(|token| !printed.contains(token))
        {
            if token != begun {
                if begun != 0 && !printed.contains(&begun) {
                    eprintln!("the rest of the output of attempt {begun} of task {} cannot be reached", name(&task));
                }
                (begun, offset) = (token, 0);
            }
            let request = OutputRequest { task: id.0, token, offset, follow: true };
            match copy_output(client, request, &mut offset, only_shows).await {
                // It is over, or what there was cannot be had any more.
                Ok(true) | Err(ClientError::Invalid(_)) => {
                    printed.insert(token);
                    pause = LOOK_MIN;
                    continue;
                }
                // The stream broke: go on from where it was, or with the attempt that follows.
                Ok(false) | Err(ClientError::Unavailable(_) | ClientError::Unknown(_)) => {
                    let superseded = current(&task).is_none_or(|attempt| attempt.token != token);
                    if superseded {
                        eprintln!("the output of attempt {token} of task {} cannot be reached", name(&task));
                        printed.insert(token);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        if only_shows && output::unprinted().is_some() {
            return Ok(task);
        }
        if is_ended(&task) && task.attempts.last().is_none_or(|attempt| printed.contains(&attempt.token)) {
            return Ok(task);
        }
        client.pause(pause).await;
        pause = (pause * 2).min(LOOK_MAX);
    }
}

/// Copies output to where it belongs, and says what of it was gone before it could be read. True if it was all there will be; `offset`
/// says how far it came.
async fn copy_output(
    client: &Client,
    request: OutputRequest,
    offset: &mut u64,
    only_shows: bool,
) -> Result<bool, ClientError> {
    let (token, mut gone) = (request.token, 0);
    let copied = copy_pieces(client, request, (offset, &mut gone), only_shows).await;
    if gone > 0 {
        let kept = OUTPUT_BYTES_KEPT >> 20;
        eprintln!("about {gone} bytes of the output of attempt {token} are gone: its newest {kept} MiB are kept");
    }
    copied
}

async fn copy_pieces(
    client: &Client,
    request: OutputRequest,
    (offset, gone): (&mut u64, &mut u64),
    only_shows: bool,
) -> Result<bool, ClientError> {
    let mut pieces = client.output(request).await?;
    loop {
        match pieces.message().await {
            Ok(Some(piece)) => {
                *gone += piece.begin.saturating_sub(*offset);
                let reads = output::unprinted().is_none();
                for record in piece.records {
                    match record.stderr {
                        // Whoever reads it may have gone, and that must stop nothing.
                        true => drop(std::io::stderr().lock().write_all(&record.data)),
                        false => output::print(&record.data),
                    }
                }
                *offset = piece.next;
                if reads && !only_shows && output::unprinted().is_some() {
                    eprintln!("nobody reads what the task writes any more; it goes on, and Ctrl-C stops it");
                }
                if piece.ended {
                    return Ok(true);
                }
                if only_shows && output::unprinted().is_some() {
                    return Ok(false);
                }
            }
            Ok(None) => return Ok(false),
            Err(status) if status.code() == tonic::Code::NotFound => {
                return Err(ClientError::Invalid(status.message().into()));
            }
            Err(status) => return Err(ClientError::Unavailable(status.message().into())),
        }
    }
}

async fn list(client: &Client) -> Result<Vec<Task>, Failure> {
    let mut tasks: Vec<Task> = Vec::new();
    loop {
        let page = client.list_tasks(TaskId(tasks.last().map_or(0, |task| task.id))).await?;
        tasks.extend(page.tasks);
        if !page.more {
            return Ok(tasks);
        }
    }
}

fn name(task: &Task) -> &str {
    task.spec.as_ref().map_or("", |spec| &spec.name)
}

fn phase_name(phase: TaskPhase) -> &'static str {
    match phase {
        TaskPhase::Pending => "pending",
        TaskPhase::Assigned => "assigned",
        TaskPhase::Running => "running",
        TaskPhase::Succeeded => "succeeded",
        TaskPhase::Failed => "failed",
        TaskPhase::Stopped => "stopped",
        TaskPhase::Lost => "lost",
        TaskPhase::Unspecified => "unknown",
    }
}

fn phase_text(task: &Task) -> String {
    let stopping = if task.stop_wanted && !is_ended(task) { ", stopping" } else { "" };
    format!("{}{stopping}", phase_name(task.phase()))
}

fn exit_text(exit: &Exit) -> String {
    let how = match exit.reason() {
        Reason::Exited => "exited",
        Reason::TimedOut => "ran into its time limit",
        Reason::Stopped => "stopped",
        Reason::Drained => "ended because its worker went down in order",
        Reason::LeaseEnded => "ended because its worker lost touch with the cluster",
        Reason::NotStarted => "could not be started",
        Reason::Lost => "lost",
        Reason::Unspecified => "ended",
    };
    let code = exit.code.map(|code| format!(" with status {code}")).unwrap_or_default();
    let signal = exit.signal.map(|signal| format!(" by signal {signal}")).unwrap_or_default();
    let message = if exit.message.is_empty() { String::new() } else { format!(": {}", exit.message) };
    format!("{how}{code}{signal}{message}")
}

fn task_row(task: &Task) -> Vec<String> {
    let worker = current(task).map_or("-".into(), |attempt| attempt.worker.to_string());
    let command = task.spec.as_ref().map(|spec| spec.command.join(" ")).unwrap_or_default();
    let command: String = command.chars().take(60).collect();
    let failures = format!("{} of {}", task.failures, task.spec.as_ref().map_or(0, |spec| spec.retries) + 1);
    vec![task.id.to_string(), name(task).into(), phase_text(task), worker, failures, command]
}

/// A task and its attempts; simply, the attempts alone.
fn print_task(output: Output, task: &Task, waiting_for: &str) {
    if output == Output::Table {
        describe(task, waiting_for);
    }
    let row = |attempt: &Attempt| {
        let span =
            |from: u64, to: u64| if from == 0 || to == 0 { "-".into() } else { format!("{} ms", to - from.min(to)) };
        let end = attempt.exit.as_ref().map_or("under way".into(), exit_text);
        vec![
            attempt.token.to_string(),
            attempt.worker.to_string(),
            span(attempt.assigned_ms, attempt.started_ms),
            span(attempt.started_ms, attempt.ended_ms),
            end,
        ]
    };
    let rows: Vec<_> = task.attempts.iter().map(row).collect();
    if !rows.is_empty() {
        output::table(output, &["ATTEMPT", "WORKER", "STARTED AFTER", "RAN", "END"], &rows);
    }
}

fn describe(task: &Task, waiting_for: &str) {
    let spec = task.spec.clone().unwrap_or_default();
    say!("task {} ({})  {}", spec.name, task.id, phase_text(task));
    if !waiting_for.is_empty() {
        say!("waits: {waiting_for}");
    }
    say!("command: {}", spec.command.join(" "));
    let Resources { cpu_milli, memory_bytes, disk_bytes } = spec.resources.unwrap_or_default();
    let (memory, disk) = (bytes_text(memory_bytes), bytes_text(disk_bytes));
    say!("reserves: cpu {cpu_milli}m  memory {memory}  disk {disk}");
    say!(
        "failed exits: {} of {} before it is given up  lost workers: {}",
        task.failures,
        spec.retries + 1,
        task.losses
    );
    if !task.attempts.is_empty() {
        say!("");
    }
}

fn task_json(task: &Task) -> Value {
    let spec = task.spec.clone().unwrap_or_default();
    let resources = spec.resources.unwrap_or_default();
    let attempt = |attempt: &Attempt| {
        let exit = attempt.exit.as_ref().map(|exit| {
            json!({
                "reason": exit.reason().as_str_name().trim_start_matches("REASON_").to_lowercase(),
                "code": exit.code,
                "signal": exit.signal,
                "message": exit.message,
            })
        });
        json!({
            "attempt": attempt.token,
            "worker": attempt.worker,
            "assigned_ms": attempt.assigned_ms,
            "started_ms": attempt.started_ms,
            "ended_ms": attempt.ended_ms,
            "exit": exit,
        })
    };
    json!({
        "id": task.id,
        "name": spec.name,
        "phase": phase_name(task.phase()),
        "stop_wanted": task.stop_wanted,
        "command": spec.command,
        "env": spec.env.iter().map(|var| (var.name.clone(), var.value.clone())).collect::<BTreeMap<_, _>>(),
        "cpu_milli": resources.cpu_milli,
        "memory_bytes": resources.memory_bytes,
        "disk_bytes": resources.disk_bytes,
        "features": spec.features,
        "timeout_ms": spec.timeout_ms,
        "retries": spec.retries,
        "kill_grace_ms": spec.kill_grace_ms,
        "failures": task.failures,
        "losses": task.losses,
        "submitted_ms": task.submitted_ms,
        "ended_ms": task.ended_ms,
        "attempts": task.attempts.iter().map(attempt).collect::<Vec<_>>(),
    })
}
