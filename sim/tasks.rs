//! Clients that submit tasks. What must become of every one of them, `oracle/outcomes` tells.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use madsim::time::timeout;
use tonic::{Code, Status};

use crate::client::{Client, ClientError};
use crate::ids::{NodeId, TaskId};
use crate::io::RngStream;
use crate::proto::v1::{EnvVar, GetTaskReply, OutputRequest, Resources, Task, TaskSpec, get_task::By};
use crate::sim::oracle::Violations;
use crate::sim::world::World;
use crate::state::task;

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

fn draw_spec(rng: &mut RngStream, mark: u64, (stubborn_permille, brief_permille): (u64, u64)) -> TaskSpec {
    // What does not let itself be ended counts only if it would run for long.
    let lengths: &[u64] = if stubborn_permille > 500 { &[3_000, 40_000] } else { &[50, 500, 3_000, 15_000, 40_000] };
    let millis = *rng.pick(lengths);
    let millis = rng.range(millis / 2, millis);
    let code = u64::from(rng.chance(300));
    // What fails at once is given away again and again.
    let is_brief = brief_permille > 0 && rng.chance(brief_permille);
    let (millis, code) = if is_brief { (rng.range(1, 60), 1) } else { (millis, code) };
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
        retries: if is_brief { rng.range(2, 6) as u32 } else { rng.range(0, 3) as u32 },
        kill_grace_ms: rng.range(100, 3_000),
        ..TaskSpec::default()
    }
}

/// Submits tasks that the simulator's machines can run, while `goes_on` says so, and wants some of them stopped.
pub async fn submit(
    client: Client,
    id: u64,
    (count, stubborn_permille, brief_permille): (u64, u64, u64),
    rng: RngStream,
    goes_on: &(dyn Fn() -> bool + Sync),
    submissions: &Submissions,
    world: &World,
) {
    let submitter = Submitter {
        id,
        goes_on: &|number| number < count && goes_on(),
        draw: &|rng, mark| draw_spec(rng, mark, (stubborn_permille, brief_permille)),
        tell: &|what| world.trace.event(what),
        stopped: &|task| world.ledger.stop(task),
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
    /// Told of every task of which it was heard that it will be stopped.
    pub stopped: &'a (dyn Fn(TaskId) + Sync),
}

/// Submits tasks, and wants some of them stopped.
pub async fn submit_each(client: &Client, submitter: Submitter<'_>, mut rng: RngStream, submissions: &Submissions) {
    let Submitter { id, goes_on, draw, tell, stopped: is_stopped } = submitter;
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
            if phase.is_ok() {
                is_stopped(task);
            }
            tell(format_args!("client {id} stops task {task}: {phase:?}"));
        }
    }
}

/// How long the first piece of an output, or the word that there is none, is waited for.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(3);

/// Asks for the output of the newest attempt under way, again and again while this is true: as long as it is under way, nobody
/// may say that there is no output. `gone` are workers whose disks are lost.
pub async fn follow(
    client: &Client,
    goes_on: &(dyn Fn() -> bool + Sync),
    gone: &(dyn Fn() -> Vec<NodeId> + Sync),
    violations: &Violations,
) {
    while goes_on() {
        client.pause(Duration::from_millis(300)).await;
        let Ok(page) = client.list_tasks(TaskId(0)).await else { continue };
        let current = |task: &Task| task::current(task).map(|attempt| (attempt.token, task.id));
        let Some((token, task)) = page.tasks.iter().filter_map(current).max() else { continue };
        let request = OutputRequest { task, token, offset: 0, follow: true };
        let first = async {
            match client.output(request).await {
                Ok(mut pieces) => pieces.message().await.err().filter(|status| status.code() == Code::NotFound),
                Err(ClientError::Invalid(why)) => Some(Status::not_found(why)),
                Err(_) => None,
            }
        };
        let Ok(Some(status)) = timeout(OUTPUT_PATIENCE, first).await else { continue };
        let Ok(GetTaskReply { found: Some(found), .. }) = client.get_task(By::Id(task)).await else { continue };
        let still = task::current(&found).filter(|attempt| attempt.token == token);
        if still.is_some_and(|attempt| !gone().contains(&NodeId(attempt.worker))) {
            let what = format!("{}: {found:?}", status.message());
            violations.add("what is under way has an output", what);
        }
    }
}
