//! The command line: what people and scripts type.
//!
//! Exit status: 0 done; 1 refused, not found or failed; 2 wrong usage; 3 not done because the cluster could not be
//! reached; 4 the outcome is unknown; 70 the node stopped itself because it could not go on safely; 141 whoever read what was
//! printed has gone.

/// Prints a line to standard output.
macro_rules! say {
    ($($arguments:tt)*) => {
        $crate::cli::output::print(format!("{}\n", format_args!($($arguments)*)).as_bytes())
    };
}

mod access;
mod alarm;
mod auth;
mod bench;
mod config;
mod kv;
mod lease;
mod line;
mod listen;
mod output;
mod serve;
mod snapshot;
mod task;
mod txn;
mod units;
mod worker;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use serde_json::json;

use self::units::bytes_text;
use crate::client::{Client, ClientError};
use crate::error::{AuthReject, Context, Fault, Reject};
use crate::ids::{Address, NodeId};
use crate::io::Io;
use crate::os;
use crate::proto::v1::{Member, MemberRole, StatusReply};
use crate::state::member::is_server;

/// Cairn: a consensus node. One is a working system, three lose nothing when a machine dies.
#[derive(Parser)]
#[command(
    name = "node",
    version,
    after_help = "Examples:\n  node dev\n  node run -- sh -c 'echo hello'\n  node kv put greeting hello\n  node cluster status"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start one node for trying things out: everything on, data kept between runs
    #[command(after_help = "Example:\n  node dev\n  node dev --data-dir /tmp/cairn --listen 127.0.0.1:7500")]
    Dev(serve::Dev),
    /// Start a node of a cluster
    #[command(after_help = "Examples:\n  \
        node start --data-dir n1 --listen 127.0.0.1:7400 --bootstrap\n  \
        node start --data-dir n2 --listen 127.0.0.1:7401 --join 127.0.0.1:7400\n  \
        node start --data-dir w1 --listen 127.0.0.1:7410 --join 127.0.0.1:7400 --role worker\n  \
        node start --config cairn.toml")]
    Start(serve::Start),
    /// Run a command on the cluster: print what it writes, and exit as it does
    #[command(after_help = "Examples:\n  \
        node run -- sh -c 'echo hello; sleep 1; echo bye'\n  \
        node run --cpu 500m --memory 256Mi --timeout 5m --retries 2 -- ./job.sh\n\n\
        Exit status: the command's own, or 124 after its time limit, 125 if it was given up for lost, 127 if it could not \
        be started, 130 if it was stopped.")]
    Run {
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        spec: task::Spec,
    },
    /// Submit tasks, and look at them
    #[command(after_help = "Examples:\n  node task submit --name nightly -- ./job.sh\n  node task status nightly\n  \
        node task logs -f nightly\n  node task stop nightly")]
    Task {
        #[command(flatten)]
        connection: Connection,
        #[command(subcommand)]
        command: task::TaskCommand,
    },
    /// Look at the workers, and drain them
    #[command(after_help = "Examples:\n  node worker list\n  node worker drain 2")]
    Worker {
        #[command(flatten)]
        connection: Connection,
        #[command(subcommand)]
        command: worker::WorkerCommand,
    },
    /// Read and write the key-value store
    #[command(
        after_help = "Examples:\n  node kv put greeting hello\n  node kv get greeting\n  node kv list --prefix gre\n  \
        node kv get greeting --revision 2\n  node kv watch gre --prefix\n  node kv compact 10\n\netcd's own clients can be used as well: ETCDCTL_API=3 \
        etcdctl --endpoints 127.0.0.1:7400 get greeting"
    )]
    Kv {
        #[command(flatten)]
        connection: Connection,
        #[command(subcommand)]
        command: kv::Kv,
    },
    /// Grant leases, and keep them alive: keys that are put under a lease are removed when it ends
    #[command(
        after_help = "Examples:\n  node lease grant 60\n  node kv put --lease 4a1c leader n1\n  node lease keep-alive 4a1c\n  \
        node lease ttl 4a1c --keys\n  node lease revoke 4a1c"
    )]
    Lease {
        #[command(flatten)]
        connection: Connection,
        #[command(subcommand)]
        command: lease::Lease,
    },
    /// Run a program while a lock is held, which nobody else holds then
    #[command(after_help = "Example:\n  node lock backup -- sh -c 'echo $CAIRN_LOCK_TOKEN; ./backup.sh'\n\n\
        Exit status: the program's own, or 1 if the lock was lost, 130 if it was interrupted while it waited.")]
    Lock {
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        lock: line::LockCommand,
    },
    /// Lead alone, for as long as this runs, or see who does
    #[command(after_help = "Examples:\n  node elect writers n1\n  node elect writers --listen\n\n\
        Exit status: 0 if it was interrupted while it led, 130 while it waited, 3 if it leads no more because no member could be reached.")]
    Elect {
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        elect: line::ElectCommand,
    },
    /// Look at alarms, and disarm them: one is raised when keys take more than they may
    #[command(after_help = "Examples:\n  node alarm list\n  node kv compact 1000 --physical\n  node alarm disarm")]
    Alarm {
        #[command(flatten)]
        connection: Connection,
        #[command(subcommand)]
        command: alarm::Alarm,
    },
    /// Say who may do what: users log in, and have roles, which say what may be done with which keys
    #[command(
        after_help = "Examples:\n  node auth user add root\n  node auth user grant root root\n  node auth enable\n  \
        export CAIRN_USER=root\n  node auth role add web\n  node auth role grant web readwrite web/ --prefix\n  \
        node auth user add alice\n  node auth user grant alice web\n  node kv put web/greeting hello --user alice"
    )]
    Auth {
        #[command(flatten)]
        connection: Connection,
        #[command(subcommand)]
        command: auth::Auth,
    },
    /// Write the state of a cluster to a file, and begin a new cluster with one
    #[command(after_help = "Examples:\n  node snapshot save monday.backup\n  node snapshot status monday.backup\n  \
        node snapshot restore monday.backup --data-dir n1")]
    Snapshot {
        #[command(flatten)]
        connection: Connection,
        #[command(subcommand)]
        command: snapshot::Snapshot,
    },
    /// Measure a cluster, beside what its disk can do
    #[command(
        after_help = "Examples:\n  node bench put --clients 1\n  node bench put --clients 256 --connections 16 -o json"
    )]
    Bench {
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        load: bench::Load,
    },
    /// Look at the cluster and change its members
    #[command(
        after_help = "Examples:\n  node cluster status -o json\n  node cluster transfer-leader 2\n  node cluster remove 3"
    )]
    Cluster {
        #[command(flatten)]
        connection: Connection,
        #[command(subcommand)]
        command: Cluster,
    },
    /// Make what a cluster beyond this machine needs: an authority, the token, a node's certificate
    #[command(
        after_help = "Examples:\n  node credentials n1.example 10.0.0.1\n  node credentials n2.example 10.0.0.2\n\n\
        What is in the directory already is used, so that all nodes share the authority and the token."
    )]
    Credentials(access::Credentials),
    /// Watch over one attempt at a task; nodes start it
    #[command(hide = true)]
    Shim {
        /// The attempt's directory
        dir: PathBuf,
    },
    /// Become a program that dies with the process that runs it; `lock` starts it
    #[command(hide = true)]
    Beside {
        /// That process
        parent: i32,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Become the program of an attempt; shims start it
    #[command(hide = true)]
    ShimExec {
        /// The attempt's directory
        dir: PathBuf,
        /// The shim's process
        shim: i32,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

#[derive(Subcommand)]
enum Cluster {
    /// Members, workers that keep no state among them: roles, leader, term, and of each its health, how far it has come, and
    /// its version
    Status,
    /// Have an id ready for a node that is yet to join from an address. Not needed: who may join needs no announcement
    Add {
        /// The address that it will be reached at
        address: Address,
        /// It is not to vote until it is promoted
        #[arg(long)]
        standby: bool,
    },
    /// Give a learner that has caught up a vote; one that does not stand by gets it without this
    Promote {
        /// Its id, as `status` shows it
        #[arg(value_parser = units::member)]
        id: NodeId,
    },
    /// Remove a member, or a worker that keeps no state, for ever; its node says so and ends
    Remove {
        /// Its id, as `status` shows it
        #[arg(value_parser = units::member)]
        id: NodeId,
    },
    /// Have another voter lead
    TransferLeader {
        /// Its id; the one whose log is furthest without one
        #[arg(value_parser = units::member)]
        id: Option<NodeId>,
    },
    /// Have members write their states anew, one after the other, into files without what is free in those they have. They go on
    /// serving meanwhile, and need room for a second file
    Defragment {
        /// Their ids, as `status` shows them; all members without one, the leader last
        #[arg(value_parser = units::member)]
        ids: Vec<NodeId>,
    },
}

/// How to reach the cluster, and how to print.
#[derive(Args)]
#[command(next_help_heading = "Connection and output")]
struct Connection {
    /// Addresses of members, the first that answers is used
    #[arg(long, global = true, env = "CAIRN_ENDPOINTS", value_delimiter = ',', default_value = "127.0.0.1:7400")]
    endpoints: Vec<Address>,
    /// How long to try, in seconds
    #[arg(long, global = true, default_value = "10", value_parser = seconds)]
    command_timeout: Duration,
    #[command(flatten)]
    access: access::Access,
    /// Who to log in as. Without the password after the name, it is asked for, or read from standard input
    #[arg(long, global = true, env = "CAIRN_USER", value_name = "NAME[:PASSWORD]", hide_env_values = true)]
    user: Option<String>,
    /// The password of who logs in; then there is none in --user
    #[arg(long, global = true, env = "CAIRN_PASSWORD", hide_env_values = true)]
    password: Option<String>,
    /// What to print
    #[arg(short = 'o', long = "output", global = true, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs: one JSON document, or one a line of what goes on. Bytes that are no text are {"base64": …}
    Json,
    /// For `cut` and `while read`: a line for each row, with tabs between its columns; in them a tab is \t, a line's end \n, and \ is \\
    Simple,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.trim_end_matches('s').parse::<f64>() {
        Ok(value) if (0.001..=300.0).contains(&value) => Ok(Duration::from_secs_f64(value)),
        _ => Err(format!("{text:?} is not a number of seconds from 0.001 to 300")),
    }
}

impl Connection {
    fn client(&self) -> Result<Client, Failure> {
        let (io, login) = (self.access.client_io()?, self.login()?);
        Ok(self.connect(io, login.as_ref()))
    }

    /// Name and password of who is to log in.
    fn login(&self) -> Result<Option<(String, String)>, Failure> {
        let Some(user) = &self.user else { return Ok(None) };
        let login = |name: &str, password: &str| Some((name.to_owned(), password.to_owned()));
        Ok(match (user.split_once(':'), &self.password) {
            (_, Some(password)) => login(user, password),
            (Some((name, password)), None) => login(name, password),
            (None, None) => {
                let read = os::read_secret(&format!("Password of {user}: "));
                login(user, &read.context(|| "read the password".into())?)
            }
        })
    }

    fn connect(&self, io: Io, login: Option<&(String, String)>) -> Client {
        let client = Client::new(io, &self.endpoints, self.command_timeout);
        match login {
            Some((name, password)) => client.as_user(name, password),
            None => client,
        }
    }
}

/// Why a command did not succeed.
enum Failure {
    Fault(Fault),
    Client(ClientError),
    /// Not found, or not done: what there is to say of that.
    Refused(String),
    /// It makes no sense as it was typed, and nobody was asked.
    Usage(String),
}

impl Failure {
    fn usage(why: impl ToString) -> Self {
        Self::Usage(why.to_string())
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl Failure {
    fn report(&self) -> i32 {
        match self {
            Self::Fault(fault) => eprintln!("error: {fault}"),
            Self::Refused(what) => eprintln!("error: {what}"),
            Self::Usage(why) => {
                eprintln!("error: {why}");
                return 2;
            }
            Self::Client(error @ ClientError::Unavailable(_)) => {
                eprintln!("error: {error}");
                if let Some(hint) = hint(&error.to_string()) {
                    eprintln!("{hint}");
                }
                return client_status(error);
            }
            Self::Client(error) => {
                eprintln!("error: {error}");
                if *error == ClientError::Rejected(Reject::Auth(AuthReject::UserMissing)) {
                    eprintln!("Log in: --user NAME");
                }
                return client_status(error);
            }
        }
        1
    }
}

/// What to do about it when nobody could be reached. The transport says little, and which of its errors comes first is chance.
fn hint(text: &str) -> Option<&'static str> {
    let hints = [
        ("tcp connect error", "Is a node running there? Start one with: node dev"),
        ("InvalidContentType", "What answers there does not speak TLS: leave out --tls-ca"),
        ("transport error", "Something answers there. If it speaks TLS, give --tls-ca"),
    ];
    // Who says of another that it cannot be reached, or that too few are, answers itself.
    let answers =
        ["which cannot be reached", "no leader is known", "no majority"].iter().any(|sign| text.contains(sign));
    hints.into_iter().find(|(sign, _)| !answers && text.contains(sign)).map(|(_, hint)| hint)
}

/// The exit status of what a client could not do.
fn client_status(error: &ClientError) -> i32 {
    match error {
        ClientError::Unavailable(_) => 3,
        ClientError::Unknown(_) => 4,
        ClientError::Rejected(_) | ClientError::RevisionMismatch { .. } | ClientError::Invalid(_) => 1,
    }
}

/// A command line in which a negative number is a value, which is taken or refused, and no option.
fn negatives_are_values(command: clap::Command) -> clap::Command {
    let takes = |arg: clap::Arg| match arg.get_action().takes_values() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    };
    command.mut_args(takes).mut_subcommands(negatives_are_values)
}

fn parse<T: CommandFactory + FromArgMatches>(
    words: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<T, clap::Error> {
    let matches = negatives_are_values(T::command()).try_get_matches_from(words)?;
    T::from_arg_matches(&matches)
}

/// Runs the command line and gives the exit status.
pub fn main() -> i32 {
    let cli: Cli = match parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; clap knows which stream each belongs to.
            let _ = error.print();
            return error.exit_code();
        }
    };
    match &cli.command {
        Command::Shim { dir } => return os::shim::run(dir),
        Command::ShimExec { dir, shim, command } => return os::shim::become_program(dir, *shim, command),
        Command::Beside { parent, command } => return os::child::become_program(*parent, command),
        _ => {}
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: start the runtime: {error}");
            return 1;
        }
    };
    // What these do goes on, and their exit status is not about what they print.
    let goes_on = matches!(
        cli.command,
        Command::Dev(_)
            | Command::Start(_)
            | Command::Run { .. }
            | Command::Lock { .. }
            | Command::Elect { .. }
            | Command::Lease { command: lease::Lease::KeepAlive { .. }, .. }
    );
    let result = runtime.block_on(async {
        match cli.command {
            Command::Dev(dev) => dev.run().await.map(|()| 0),
            Command::Start(start) => start.run().await.map(|()| 0),
            Command::Credentials(credentials) => credentials.run().map(|()| 0),
            Command::Run { connection, spec } => task::run(&connection, &spec).await,
            Command::Task { connection, command } => command.run(&connection).await.map(|()| 0),
            Command::Worker { connection, command } => command.run(&connection).await.map(|()| 0),
            Command::Kv { connection, command } => command.run(&connection).await.map(|()| 0),
            Command::Lease { connection, command } => command.run(&connection).await.map(|()| 0),
            Command::Alarm { connection, command } => command.run(&connection).await.map(|()| 0),
            Command::Auth { connection, command } => command.run(&connection).await.map(|()| 0),
            Command::Lock { connection, lock } => lock.run(&connection).await,
            Command::Elect { connection, elect } => elect.run(&connection).await,
            Command::Snapshot { connection, command } => command.run(&connection).await.map(|()| 0),
            Command::Bench { connection, load } => load.run(&connection).await.map(|()| 0),
            Command::Cluster { connection, command } => command.run(&connection).await.map(|()| 0),
            Command::Shim { .. } | Command::ShimExec { .. } | Command::Beside { .. } => {
                unreachable!("handled before the runtime was made")
            }
        }
    });
    match result {
        Ok(0) if !goes_on => output::status(),
        Ok(status) => status,
        Err(failure) => failure.report(),
    }
}

impl Cluster {
    async fn run(&self, connection: &Connection) -> Result<(), Failure> {
        let client = connection.client()?;
        match (self, connection.output) {
            (Self::Status, output) => {
                let status = client.status().await?;
                let rows = status.members.iter().filter_map(|row| row.member.clone());
                let live: Vec<_> = rows.filter(|member| member.role() != MemberRole::Removed).collect();
                let each = client.ask_each(&live).await;
                match output {
                    Output::Json => output::json(&output::status_json(&status, &each)),
                    _ => output::status_table(output, &status, &each),
                }
            }
            (Self::Add { address, standby }, output) => {
                let id = client.expect_member(address, *standby).await?;
                let document = json!({ "id": id.0, "address": address.as_str() });
                // Whoever leads is there; who was asked first need not be.
                let leads = |status: &StatusReply| {
                    let rows = status.members.iter().filter_map(|row| row.member.as_ref());
                    rows.clone().find(|member| member.id == status.leader).map(|member| member.address.clone())
                };
                let leader = client.status().await.ok().as_ref().and_then(leads);
                let at = leader.unwrap_or_else(|| connection.endpoints[0].to_string());
                let join = format!("node start --data-dir DIR --listen {address} --join {at}");
                output::told(
                    output,
                    &document,
                    &[id.to_string()],
                    format_args!("member {id} is expected at {address}: {join}"),
                );
            }
            (Self::Promote { id }, output) => {
                client.promote_member(*id).await?;
                let document = json!({ "promoted": id.0 });
                output::told(output, &document, &[id.to_string()], format_args!("member {id} votes"));
            }
            (Self::Remove { id }, output) => {
                client.remove_member(*id).await?;
                let document = json!({ "removed": id.0 });
                output::told(output, &document, &[id.to_string()], format_args!("member {id} is removed"));
            }
            (Self::TransferLeader { id }, output) => {
                let leader = client.transfer_leader(*id).await?;
                let document = json!({ "leader": leader.0 });
                output::told(output, &document, &[leader.to_string()], format_args!("member {leader} leads"));
            }
            (Self::Defragment { ids }, output) => defragment(&client, ids, output).await?,
        }
        Ok(())
    }
}

/// Has members write their states anew, one after the other.
async fn defragment(client: &Client, ids: &[NodeId], output: Output) -> Result<(), Failure> {
    let status = client.status().await?;
    let rows = status.members.iter().filter_map(|row| row.member.as_ref());
    let mut members: Vec<&Member> = rows.filter(|member| is_server(member)).collect();
    if let Some(id) = ids.iter().find(|id| members.iter().all(|member| member.id != id.0)) {
        return Err(Failure::Refused(format!(
            "no member that keeps the state has the id {id}; see `node cluster status`"
        )));
    }
    members.retain(|member| ids.is_empty() || ids.contains(&NodeId(member.id)));
    members.sort_by_key(|member| member.id == status.leader);
    let mut done = Vec::new();
    for member in members {
        let id = member.id;
        if output != Output::Json {
            eprintln!("member {id} is asked to write its state anew …");
        }
        let (before, after) = client.defragment(member).await?;
        match output {
            Output::Json => done.push(json!({ "member": id, "bytes_before": before, "bytes_after": after })),
            Output::Simple => output::simple(&[id, before, after].map(|number| number.to_string())),
            Output::Table => say!("member {id}: {} before, {} now", bytes_text(before), bytes_text(after)),
        }
    }
    if output == Output::Json {
        output::json(&done.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        negatives_are_values(Cli::command()).debug_assert();
    }
}
