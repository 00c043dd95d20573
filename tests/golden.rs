//! Golden scripts: commands in, what came of them out. `UPDATE_GOLDENFILES=1 cargo test --features sim --test golden`
//! writes them anew; read the difference before you keep it.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::disallowed_types)] // tests are the outside world
#![cfg(feature = "sim")]

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::path::Path;

use bytes::Bytes;
use cairn::controller;
use cairn::entry::{Body, Entry};
use cairn::ids::{Incarnation, Index, NodeId, Term};
use cairn::io::Rng;
use cairn::proto::authpb::{Permission, permission::Type};
use cairn::proto::etcdserverpb::{
    AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGrantPermissionRequest,
    AuthRoleRevokePermissionRequest, AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserDeleteRequest,
    AuthUserGrantRoleRequest, AuthUserRevokeRoleRequest, CompactionRequest, DeleteRangeRequest, PutRequest,
    RangeRequest, ResponseHeader,
};
use cairn::proto::mvccpb::KeyValue;
use cairn::proto::v1::{self, change_auth::Change, command::Kind, reply};
use cairn::raft::codec;
use cairn::raft::core::{Core, CoreConfig, Flow, genesis};
use cairn::raft::log::{Recovered, Write as LogWrite};
use cairn::raft::tail::Retention;
use cairn::scheduler;
use cairn::sim::disk::SimDisk;
use cairn::state::auth::Auth;
use cairn::state::kv::{NoAnswer, Store};
use cairn::state::machine::State;
use cairn::state::{command, member, task, worker};
use cairn::time::ClusterTime;
use goldenscript::{ArgumentConsumer, Command, Context, Runner};
use prost::Message as _;
use raft::eraftpb::{HardState, Message};

type Outcome = Result<String, Box<dyn Error>>;

fn scripts(folder: &str, mut run: impl FnMut(&Path)) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder);
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "no scripts in {folder}");
    paths.iter().for_each(|path| run(path));
}

fn number(args: &mut ArgumentConsumer<'_>, name: &str) -> Result<Option<u64>, Box<dyn Error>> {
    Ok(args.take_key(name).map(str::parse).transpose()?)
}

fn word(args: &mut ArgumentConsumer<'_>, what: &str) -> Result<String, Box<dyn Error>> {
    Ok(args.next_pos().ok_or(format!("{what} is missing"))?.to_owned())
}

fn resources(args: &mut ArgumentConsumer<'_>) -> Result<v1::Resources, Box<dyn Error>> {
    Ok(v1::Resources {
        cpu_milli: number(args, "cpu")?.unwrap_or(0),
        memory_bytes: number(args, "memory")?.unwrap_or(0) << 20,
        disk_bytes: number(args, "disk")?.unwrap_or(0) << 20,
    })
}

fn spec(args: &mut ArgumentConsumer<'_>) -> Result<v1::TaskSpec, Box<dyn Error>> {
    Ok(v1::TaskSpec {
        resources: Some(resources(args)?),
        retries: number(args, "retries")?.unwrap_or(0) as u32,
        features: args.take_key("feature").map(str::to_owned).into_iter().collect(),
        name: args.next_pos().unwrap_or_default().to_owned(),
        command: vec!["true".into()],
        ..v1::TaskSpec::default()
    })
}

/// Runs the scheduler on tasks and workers that it is told of.
#[derive(Default)]
struct SchedulerRunner {
    tasks: Vec<v1::Task>,
    workers: Vec<v1::Worker>,
}

impl Runner for SchedulerRunner {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Outcome {
        let mut args = command.consume_args();
        let now = ClusterTime(number(&mut args, "now")?.unwrap_or(0));
        match command.name.as_str() {
            "clear" => *self = Self::default(),
            "task" => {
                let id = self.tasks.len() as u64 + 1;
                self.tasks.push(v1::Task { id, spec: Some(spec(&mut args)?), ..v1::Task::default() });
            }
            "worker" => {
                let id = self.workers.len() as u64 + 1;
                let status = args.take_key("status").unwrap_or("ONLINE").to_uppercase();
                let status = v1::WorkerStatus::from_str_name(&format!("WORKER_STATUS_{status}")).ok_or("no status")?;
                let features = args.take_key("feature").map(str::to_owned).into_iter().collect();
                let capacity = Some(resources(&mut args)?);
                let row =
                    v1::Worker { id, capacity, features, status: status.into(), epoch: 1, ..v1::Worker::default() };
                self.workers.push(row);
            }
            "place" => {
                let placed = scheduler::place(&self.tasks, &self.workers, now);
                return Ok(placed.iter().map(|one| format!("task {} to worker {}\n", one.task, one.worker)).collect());
            }
            "explain" => {
                let line = |task| format!("task {}: {}\n", task, self.explain(task, now));
                return Ok((1..=self.tasks.len()).map(line).collect());
            }
            other => return Err(format!("no command {other}").into()),
        }
        Ok(String::new())
    }
}

impl SchedulerRunner {
    fn explain(&self, task: usize, now: ClusterTime) -> String {
        scheduler::explain_text(&self.tasks[task - 1], &self.workers, now)
    }
}

#[test]
fn scheduling() {
    scripts("scheduler", |path| goldenscript::run(&mut SchedulerRunner::default(), path).unwrap());
}

/// Runs commands against a state, one entry each.
struct StateRunner {
    disk: SimDisk,
    state: State,
    time: u64,
}

impl StateRunner {
    fn apply(&mut self, body: Body) -> Outcome {
        let index = self.state.applied().0.next();
        let outcomes = self.state.apply(&[Entry { index, term: Term(1), body }])?;
        let replies = outcomes[0].replies.iter().map(|reply| Ok(show_reply(v1::Reply::decode(&**reply)?.kind)));
        replies.collect::<Result<String, Box<dyn Error>>>()
    }
}

/// A reply on one line.
fn show_reply(reply: Option<reply::Kind>) -> String {
    let revision = |header: &Option<ResponseHeader>| header.as_ref().map_or(0, |header| header.revision);
    match reply {
        Some(reply::Kind::Put(put)) => format!("put at {}\n", revision(&put.header)),
        Some(reply::Kind::DeleteRange(delete)) => {
            format!("{} deleted, at {}\n", delete.deleted, revision(&delete.header))
        }
        Some(reply::Kind::Compact(compact)) => format!("compacted, at {}\n", revision(&compact.header)),
        other => format!("{other:?}\n"),
    }
}

impl Runner for StateRunner {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Outcome {
        let mut args = command.consume_args();
        let session = match number(&mut args, "session")? {
            None => None,
            Some(session) => Some(v1::SessionHeader {
                session,
                seq: number(&mut args, "seq")?.ok_or("seq is missing")?,
                acknowledged: number(&mut args, "ack")?.unwrap_or(0),
            }),
        };
        let user = args.take_key("as").unwrap_or_default().to_owned();
        let since = number(&mut args, "since")?;
        let kind = match command.name.as_str() {
            "rights" => return Ok(rights(&self.state.reader().auth())),
            "put" => Kind::Put(PutRequest {
                lease: number(&mut args, "lease")?.unwrap_or(0) as i64,
                key: word(&mut args, "key")?.into(),
                value: word(&mut args, "value")?.into(),
                ..PutRequest::default()
            }),
            "delete" => Kind::DeleteRange(DeleteRangeRequest {
                key: word(&mut args, "key")?.into(),
                range_end: args.next_pos().unwrap_or_default().to_owned().into(),
                prev_kv: false,
            }),
            "compact" => {
                let revision = word(&mut args, "revision")?.parse()?;
                Kind::Compact(CompactionRequest { revision, physical: false })
            }
            "sweep" => Kind::SweepVersions(v1::SweepVersions {}),
            "open" => Kind::OpenSession(v1::OpenSession::default()),
            "keep" => Kind::KeepSession(v1::KeepSession {}),
            "close" => Kind::CloseSession(v1::CloseSession { session: word(&mut args, "id")?.parse()? }),
            "expire" => {
                let sessions = std::iter::from_fn(|| args.next_pos()).map(str::parse).collect::<Result<_, _>>()?;
                Kind::ExpireSessions(v1::ExpireSessions { sessions })
            }
            "sleep" => {
                self.time += word(&mut args, "milliseconds")?.parse::<u64>()?;
                return Ok(String::new());
            }
            "submit" => Kind::SubmitTask(v1::SubmitTask { spec: Some(spec(&mut args)?) }),
            "stop" => Kind::StopTask(v1::StopTask { id: word(&mut args, "id")?.parse()? }),
            "register" => Kind::RegisterWorker(v1::RegisterWorker {
                worker: word(&mut args, "id")?.parse()?,
                capacity: Some(resources(&mut args)?),
                features: Vec::new(),
                life: 0,
            }),
            "renew" => Kind::RenewWorker(v1::RenewWorker {
                worker: word(&mut args, "id")?.parse()?,
                epoch: word(&mut args, "epoch")?.parse()?,
                registered: None,
            }),
            "report" => Kind::ReportAttempt(v1::ReportAttempt {
                task: word(&mut args, "task")?.parse()?,
                token: word(&mut args, "token")?.parse()?,
                exit: match args.next_pos().map(str::to_owned) {
                    None => None,
                    Some(reason) => {
                        let reason = v1::exit::Reason::from_str_name(&format!("REASON_{}", reason.to_uppercase()));
                        let code = args.next_pos().map(str::parse).transpose()?;
                        Some(v1::Exit { reason: reason.ok_or("no such reason")?.into(), code, ..v1::Exit::default() })
                    }
                },
            }),
            "lead" => {
                // What a leader would propose on what it sees.
                let (head, rows) = self.state.reader().view()?;
                let commands = controller::expire(&head, &rows, ClusterTime(head.cluster_time_ms), true)?
                    .into_iter()
                    .chain(controller::assign(&head, &rows)?);
                let commands: Vec<Bytes> = commands.map(|command| command.encode_to_vec().into()).collect();
                return self.apply(Body::Commands { stamp: ClusterTime(self.time), commands });
            }
            "tasks" => {
                let (_, rows) = self.state.reader().view()?;
                let tasks = task::list(&rows, &v1::ListTasks::default())?.tasks;
                let line = |task: &v1::Task| {
                    let attempts =
                        task.attempts.iter().map(|a| format!("{}@{}", a.token, a.worker)).collect::<Vec<_>>();
                    let (phase, failures, losses) = (task.phase(), task.failures, task.losses);
                    format!("{} {phase:?} failures {failures} losses {losses} attempts {attempts:?}\n", task.id)
                };
                return Ok(tasks.iter().map(line).collect());
            }
            "workers" => {
                let (_, rows) = self.state.reader().view()?;
                let line = |worker: &v1::Worker| {
                    let (used, has) = (worker.used.unwrap_or_default(), worker.capacity.unwrap_or_default());
                    let (id, status, epoch) = (worker.id, worker.status(), worker.epoch);
                    format!("{id} {status:?} epoch {epoch} cpu {} of {}\n", used.cpu_milli, has.cpu_milli)
                };
                return Ok(worker::all(&rows)?.iter().map(line).collect());
            }
            "member" => {
                let id = word(&mut args, "id")?.parse()?;
                let role = match word(&mut args, "role")?.as_str() {
                    "learner" => v1::MemberRole::Learner,
                    "voter" => v1::MemberRole::Voter,
                    "removed" => v1::MemberRole::Removed,
                    "worker" => v1::MemberRole::Worker,
                    other => return Err(format!("no role {other}").into()),
                };
                let row =
                    v1::Member { id, role: role.into(), address: format!("host-{id}:7400"), ..v1::Member::default() };
                let change = v1::MemberChange { members: vec![row] }.encode_to_vec().into();
                return self.apply(Body::Members { conf_state: Bytes::new(), change });
            }
            "members" => {
                let (_, rows) = self.state.reader().view()?;
                let line = |member: v1::Member| format!("{} {} {:?}\n", member.id, member.address, member.role());
                return Ok(member::all(&rows)?.into_iter().map(line).collect());
            }
            "range" => {
                let range = RangeRequest {
                    limit: number(&mut args, "limit")?.unwrap_or(0) as i64,
                    revision: number(&mut args, "revision")?.unwrap_or(0) as i64,
                    key: args.next_pos().unwrap_or("\0").to_owned().into(),
                    range_end: args.next_pos().unwrap_or("\0").to_owned().into(),
                    ..RangeRequest::default()
                };
                let (head, rows) = self.state.reader().view()?;
                let reply = match Store::of(&head, &rows).range(&range) {
                    Ok(reply) => reply,
                    Err(NoAnswer::Rejected(reject)) => return Err(reject.into()),
                    Err(other) => return Err(format!("{other:?}").into()),
                };
                let line = |row: &KeyValue| {
                    let (created, revision, version) = (row.create_revision, row.mod_revision, row.version);
                    format!("{:?} = {:?} at {revision}, created at {created}, version {version}\n", row.key, row.value)
                };
                return Ok(reply.kvs.iter().map(line).collect::<String>() + if reply.more { "…\n" } else { "" });
            }
            "raise" => {
                let to = word(&mut args, "format")?.parse()?;
                let members = std::iter::from_fn(|| args.next_pos()).map(str::parse).collect::<Result<_, _>>()?;
                Kind::RaiseFormat(v1::RaiseFormat { to, members })
            }
            "restart" => {
                self.state.checkpoint()?;
                self.state = State::open(self.disk.boot(), Index(0))?;
                assert_eq!(self.state.digest(), self.state.reader().full_digest()?);
                return Ok(format!("applied {:?}\n", self.state.applied()));
            }
            other => change_auth(other, &mut args)?,
        };
        args.reject_next()?;
        let bytes = v1::Command { session, since, ..command::plain(&user, kind) }.encode_to_vec().into();
        self.apply(Body::Commands { stamp: ClusterTime(self.time), commands: vec![bytes] })
    }
}

/// What users may do.
fn rights(auth: &Auth) -> String {
    let user = |name: &String| format!("{name} has {:?}\n", auth.user(name).unwrap().roles);
    let says = |permission: &Permission| {
        let kind = permission.perm_type().as_str_name().to_lowercase();
        format!(" {kind} {:?} {:?}", permission.key, permission.range_end)
    };
    let role = |name: &String| {
        let permissions: String = auth.role(name).unwrap().permissions.iter().map(says).collect();
        format!("{name} may{permissions}\n")
    };
    let enabled = if auth.is_enabled() { "enabled" } else { "not enabled" };
    let lines: String = auth.users().map(user).chain(auth.roles().map(role)).collect();
    format!("{enabled}, {}\n{lines}", auth.revision())
}

/// A command that changes users and roles.
fn change_auth(name: &str, args: &mut ArgumentConsumer<'_>) -> Result<Kind, Box<dyn Error>> {
    let change = match name {
        "enable" => Change::Enable(AuthEnableRequest {}),
        "disable" => Change::Disable(AuthDisableRequest {}),
        "user" => Change::AddUser(AuthUserAddRequest {
            name: word(args, "name")?,
            hashed_password: args.next_pos().unwrap_or_default().into(),
            ..AuthUserAddRequest::default()
        }),
        "passwd" => Change::ChangePassword(AuthUserChangePasswordRequest {
            name: word(args, "name")?,
            hashed_password: word(args, "password")?,
            ..AuthUserChangePasswordRequest::default()
        }),
        "drop-user" => Change::DeleteUser(AuthUserDeleteRequest { name: word(args, "name")? }),
        "role" => Change::AddRole(AuthRoleAddRequest { name: word(args, "name")? }),
        "drop-role" => Change::DeleteRole(AuthRoleDeleteRequest { role: word(args, "name")? }),
        "role-to" => {
            Change::GrantRole(AuthUserGrantRoleRequest { user: word(args, "user")?, role: word(args, "role")? })
        }
        "role-from" => {
            Change::RevokeRole(AuthUserRevokeRoleRequest { name: word(args, "user")?, role: word(args, "role")? })
        }
        "allow" => {
            let name = word(args, "role")?;
            let kind = Type::from_str_name(&word(args, "what")?.to_uppercase()).ok_or("it may be read or write")?;
            let (key, range_end) = (word(args, "key")?.into(), args.next_pos().unwrap_or_default().to_owned().into());
            let perm = Some(Permission { perm_type: kind.into(), key, range_end });
            Change::GrantPermission(AuthRoleGrantPermissionRequest { name, perm })
        }
        "forbid" => {
            let (role, key) = (word(args, "role")?, word(args, "key")?.into());
            let range_end = args.next_pos().unwrap_or_default().to_owned().into();
            Change::RevokePermission(AuthRoleRevokePermissionRequest { role, key, range_end })
        }
        other => return Err(format!("no command {other}").into()),
    };
    Ok(Kind::ChangeAuth(v1::ChangeAuth { change: Some(change), ..v1::ChangeAuth::default() }))
}

#[test]
fn state() {
    scripts("state", |path| {
        let disk = SimDisk::new("disk".into());
        let state = State::open(disk.boot(), Index(0)).unwrap();
        goldenscript::run(&mut StateRunner { disk, state, time: 0 }, path).unwrap();
    });
}

/// Runs cores against each other; nothing moves unless the script says so.
#[derive(Default)]
struct CoreRunner {
    nodes: BTreeMap<u64, CoreNode>,
    /// Messages that left, in order.
    wire: Vec<Message>,
}

struct CoreNode {
    core: Core,
    writes: Vec<LogWrite>,
    applied: Vec<Entry>,
}

impl CoreRunner {
    /// Performs what the core asks for, as far as it can be done at once, and says what that was.
    fn perform(&mut self, id: u64) -> Outcome {
        let node = self.nodes.get_mut(&id).ok_or("no such node")?;
        let mut out = String::new();
        while let Some(effects) = node.core.take_effects()? {
            for message in effects.send {
                writeln!(out, "{id} sends {}", show(&message))?;
                self.wire.push(message);
            }
            if let Some(write) = effects.write {
                let entries: Vec<u64> = write.entries.iter().map(|entry| entry.index).collect();
                let (term, vote) = (write.hard_state.term, write.hard_state.vote);
                writeln!(out, "{id} writes entries {entries:?} term {term} vote {vote}")?;
                node.writes.push(write);
            }
            for entry in effects.apply {
                writeln!(out, "{id} applies {} {}", entry.index, show_body(&entry.body))?;
                node.core.on_applied(entry.index);
                node.applied.push(entry);
            }
            for (context, index) in effects.reads {
                writeln!(out, "{id} may read {:?} at {index}", Bytes::from(context))?;
            }
        }
        Ok(out)
    }
}

fn show(message: &Message) -> String {
    let mut text = format!("{:?} to {} term {}", message.get_msg_type(), message.to, message.term);
    if !message.entries.is_empty() {
        let entries: Vec<u64> = message.entries.iter().map(|entry| entry.index).collect();
        text += &format!(" entries {entries:?}");
    }
    if message.reject {
        text += " reject";
    }
    text + &format!(" index {} commit {}", message.index, message.commit)
}

fn show_body(body: &Body) -> String {
    match body {
        Body::Empty => "nothing".into(),
        Body::Commands { stamp, commands } => format!("{commands:?} at {}", stamp.0),
        Body::Members { conf_state, .. } => {
            let state = codec::conf_state(conf_state).unwrap();
            format!("voters {:?} outgoing {:?} learners {:?}", state.voters, state.voters_outgoing, state.learners)
        }
    }
}

impl Runner for CoreRunner {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Outcome {
        let mut args = command.consume_args();
        let id: u64 = word(&mut args, "node")?.parse()?;
        match command.name.as_str() {
            // A member that knows the voters given, with only the founding entry applied.
            "new" => {
                let voters: Vec<u64> =
                    std::iter::from_fn(|| args.next_pos()).map(str::parse).collect::<Result<_, _>>()?;
                let mut state = raft::eraftpb::ConfState::default();
                state.voters = voters;
                let mut hard_state = HardState::default();
                (hard_state.term, hard_state.commit) = (1, 1);
                let founder = v1::Member { id: 1, ..v1::Member::default() };
                let recovered = Recovered {
                    incarnation: Incarnation(1),
                    hard_state,
                    compacted: (Index(0), Term(0)),
                    entries: vec![genesis(&founder)],
                };
                let config = CoreConfig {
                    id: NodeId(id),
                    election_ticks: 10,
                    retention: Retention::default(),
                    flow: Flow::default(),
                };
                let core = Core::new(config, recovered, Index(1), state, Rng::from_seed([id as u8; 32]))?;
                self.nodes.insert(id, CoreNode { core, writes: Vec::new(), applied: Vec::new() });
                return Ok(String::new());
            }
            "deliver" => {
                let (mine, others) = std::mem::take(&mut self.wire).into_iter().partition(|message| message.to == id);
                self.wire = others;
                let mine: Vec<Message> = mine;
                let node = self.nodes.get_mut(&id).ok_or("no such node")?;
                for message in mine {
                    node.core.step(message)?;
                }
            }
            "lose" => self.wire.retain(|message| message.to != id),
            _ => {
                let node = self.nodes.get_mut(&id).ok_or("no such node")?;
                match command.name.as_str() {
                    "tick" => (0..number(&mut args, "times")?.unwrap_or(1)).for_each(|_| node.core.tick()),
                    "campaign-alone" => node.core.maybe_campaign_alone(),
                    "persist" => {
                        let last = node.writes.drain(..).next_back().ok_or("nothing to persist")?;
                        node.core.on_persisted(last.number);
                    }
                    "propose" => {
                        let data = word(&mut args, "command")?.into();
                        match node.core.propose(ClusterTime(7), vec![data]) {
                            Ok((index, term)) => return Ok(format!("at {index} term {term}\n{}", self.perform(id)?)),
                            Err(refused) => return Ok(format!("{refused:?}\n")),
                        }
                    }
                    "promote" => {
                        let ids =
                            std::iter::from_fn(|| args.next_pos()).map(str::parse).collect::<Result<Vec<u64>, _>>()?;
                        let voter = |id| v1::Member { id, role: v1::MemberRole::Voter.into(), ..v1::Member::default() };
                        let change = v1::MemberChange { members: ids.into_iter().map(voter).collect() };
                        match node
                            .core
                            .propose_members(&change, number(&mut args, "based")?.map_or(Index(u64::MAX), Index))
                        {
                            Ok((index, _)) => return Ok(format!("at {index}\n{}", self.perform(id)?)),
                            Err(refused) => return Ok(format!("{refused:?}\n")),
                        }
                    }
                    "admit-worker" => {
                        let worker = number(&mut args, "id")?.ok_or("no id")?;
                        let role = v1::MemberRole::Worker.into();
                        let members = vec![v1::Member { id: worker, role, ..v1::Member::default() }];
                        let change = v1::MemberChange { members };
                        match node.core.propose_members(&change, Index(u64::MAX)) {
                            Ok((index, _)) => return Ok(format!("at {index}\n{}", self.perform(id)?)),
                            Err(refused) => return Ok(format!("{refused:?}\n")),
                        }
                    }
                    "active" => return Ok(format!("{:?}\n", node.core.status().active)),
                    "leave-joint" => node.core.maybe_leave_joint(),
                    "hand-over" => drop(node.core.hand_over(number(&mut args, "to")?.map(NodeId))),
                    "read" => node.core.read_index(word(&mut args, "context")?.into_bytes()),
                    "status" => {
                        let status = node.core.status();
                        return Ok(format!(
                            "{:?} term {} leader {:?} commit {} applied {} last {} voters {:?} joint {}\n",
                            status.role,
                            status.term,
                            status.leader.map(|id| id.0),
                            status.commit,
                            status.applied,
                            status.last,
                            status.voters.iter().map(|id| id.0).collect::<Vec<_>>(),
                            status.joint
                        ));
                    }
                    other => return Err(format!("no command {other}").into()),
                }
            }
        }
        self.perform(id)
    }
}

#[test]
fn core() {
    scripts("core", |path| goldenscript::run(&mut CoreRunner::default(), path).unwrap());
}
