//! Clients that submit tasks. What must become of every one of them, `oracle/outcomes` tells.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use crate::client::{Client, ClientError};
use crate::ids::TaskId;
use crate::io::RngStream;
use crate::proto::v1::{EnvVar, Resources, TaskSpec};
use crate::sim::trace::Trace;

/// The variable that marks a task as one submission's.
pub const MARK: &str = "MARK";

/// What a client heard of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It is this task.
    Taken(TaskId),
    /// It is certainly none.
    NotDone,
    /// It may be one.
    Unknown,
}

/// A task that a client wanted.
#[derive(Clone, Debug)]
pub struct Submission {
    /// What was to run.
    pub spec: TaskSpec,
    /// What the client heard of it.
    pub heard: Heard,
    /// The client wanted it stopped, at some time.
    pub stopped: bool,
}

/// Every submission of a run, by its mark.
#[derive(Default)]
pub struct Submissions(Mutex<BTreeMap<u64, Submission>>);

impl Submissions {
    /// All of them, by their marks.
    pub fn all(&self) -> BTreeMap<u64, Submission> {
        self.0.lock().unwrap().clone()
    }
}

fn draw_spec(rng: &mut RngStream, mark: u64, stubborn_permille: u64) -> TaskSpec {
    // What does not let itself be ended counts only if it would run for long.
    let lengths: &[u64] = if stubborn_permille > 500 { &[3_000, 40_000] } else { &[50, 500, 3_000, 15_000, 40_000] };
    let millis = *rng.pick(lengths);
    let millis = rng.range(millis / 2, millis);
    let code = u64::from(rng.chance(300));
    let mut command = vec!["sim".to_string(), millis.to_string(), code.to_string()];
    if rng.chance(stubborn_permille) {
        command.push("stubborn".into());
    }
    if rng.chance(30) {
        command[0] = "no-such-program".into();
    }
    TaskSpec {
        command,
        env: vec![EnvVar { name: MARK.into(), value: mark.to_string() }],
        resources: Some(Resources {
            cpu_milli: rng.range(100, 700),
            memory_bytes: rng.range(1, 400) << 20,
            disk_bytes: 0,
        }),
        timeout_ms: if rng.chance(200) { rng.range(100, 5_000) } else { 0 },
        retries: rng.range(0, 3) as u32,
        kill_grace_ms: rng.range(100, 3_000),
        ..TaskSpec::default()
    }
}

/// Submits tasks that the simulator's machines can run, and wants some of them stopped.
pub async fn submit(
    client: Client,
    id: u64,
    (count, stubborn_permille): (u64, u64),
    rng: RngStream,
    submissions: &Submissions,
    trace: &Trace,
) {
    let submitter = Submitter {
        id,
        goes_on: &|number| number < count,
        draw: &|rng, mark| draw_spec(rng, mark, stubborn_permille),
        tell: &|what| trace.event(what),
    };
    submit_each(&client, submitter, rng, submissions).await;
}

/// Who submits what, and for how long.
pub struct Submitter<'a> {
    /// Unique in a run.
    pub id: u64,
    /// Whether there is to be a task of this number.
    pub goes_on: &'a (dyn Fn(u64) -> bool + Sync),
    /// Draws the task of a mark.
    pub draw: &'a (dyn Fn(&mut RngStream, u64) -> TaskSpec + Sync),
    /// Told of everything that is done.
    pub tell: &'a (dyn Fn(fmt::Arguments<'_>) + Sync),
}

/// Submits tasks, and wants some of them stopped.
pub async fn submit_each(client: &Client, submitter: Submitter<'_>, mut rng: RngStream, submissions: &Submissions) {
    let Submitter { id, goes_on, draw, tell } = submitter;
    for number in (0..).take_while(|number| goes_on(*number)) {
        client.pause(Duration::from_millis(rng.range(1, 4_000))).await;
        let mark = id << 32 | number;
        let spec = draw(&mut rng, mark);
        let heard = match client.submit_task(spec.clone()).await {
            Ok(reply) => Heard::Taken(TaskId(reply.id)),
            Err(ClientError::Unavailable(_)) => Heard::NotDone,
            Err(_) => Heard::Unknown,
        };
        tell(format_args!("client {id} submits {mark}: {heard:?}"));
        let stopped = rng.chance(150);
        submissions.0.lock().unwrap().insert(mark, Submission { spec, heard, stopped });
        if let (Heard::Taken(task), true) = (heard, stopped) {
            client.pause(Duration::from_millis(rng.range(1, 5_000))).await;
            let phase = client.stop_task(task).await;
            tell(format_args!("client {id} stops task {task}: {phase:?}"));
        }
    }
}
