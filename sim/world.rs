//! A world: machines on one network, and what happens to them.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use madsim::runtime::{Handle, NodeHandle, Runtime};
use madsim::time::TimeHandle;
use tokio::sync::oneshot;

use crate::error::Fault;
use crate::ids::Address;
use crate::io::{Io, Rng};
use crate::sim::clock::SimClock;
use crate::sim::disk::{Contents, Damage, Files, PowerCut, SimDisk, Suffered};
use crate::sim::launcher::SimLauncher;
use crate::sim::mark::{self, Marks, Trap};
use crate::sim::network::{MachineId, SimNetwork};
use crate::sim::oracle::attempts::Ledger;
use crate::sim::spawn::{Crowd, SimSpawn, Stall};
use crate::sim::trace::{Note, Trace};

/// The seed of a run: everything about it follows from this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(pub u64);

impl Seed {
    /// The source of all randomness of the run.
    pub fn rng(self) -> Rng {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&self.0.to_le_bytes());
        bytes[8..].copy_from_slice(b"cairn simulation seed ab");
        Rng::from_seed(bytes)
    }
}

/// Runs `body` in a world of its own, in virtual time, on a fresh thread: the standard library's hash keys belong to
/// a thread and are set from the seed.
pub fn run<T, F, Fut>(seed: Seed, trace: Trace, body: F) -> Result<T, String>
where
    T: Send + 'static,
    F: FnOnce(Arc<World>) -> Fut + Send + 'static,
    Fut: Future<Output = T>,
{
    let name = format!("seed-{}", seed.0);
    #[allow(clippy::disallowed_methods)]
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        let runtime = Runtime::with_seed_and_config(seed.0, madsim::Config::default());
        runtime.block_on(async move { body(World::new(seed, trace)).await })
    });
    thread.map_err(|error| error.to_string())?.join().map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic without a message".into())
    })
}

/// How a machine goes down.
#[derive(Clone, Copy, Debug)]
pub enum Down {
    /// The process is killed; what it wrote stays written.
    Kill,
    /// The process has ended in order: what it still holds is closed, on a disk that works.
    Exit,
    /// The power goes; what was not synced is at the disk's mercy.
    Power(PowerCut),
}

/// A power cut that harms nothing.
pub const CLEAN_CUT: PowerCut = PowerCut { drop_permille: 0, tear_permille: 0 };

/// A boot that ended itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailStop {
    /// On which machine.
    pub machine: MachineId,
    /// In its own words.
    pub why: String,
    /// What had been done to its disk before.
    pub suffered: Suffered,
}

/// The machines, their network, and the record of what happened.
pub struct World {
    /// Its source of randomness.
    pub rng: Rng,
    /// The network.
    pub network: Arc<SimNetwork>,
    /// The running hash of all events.
    pub trace: Arc<Trace>,
    /// What really ran on the machines.
    pub ledger: Arc<Ledger>,
    executor: Handle,
    machines: Mutex<Vec<Arc<Machine>>>,
    fail_stops: Arc<Mutex<Vec<FailStop>>>,
}

impl World {
    fn new(seed: Seed, trace: Trace) -> Arc<Self> {
        let rng = seed.rng();
        let trace = Arc::new(trace);
        let network = SimNetwork::new(rng.child("network"), trace.clone());
        Arc::new(Self {
            rng,
            network,
            trace,
            ledger: Arc::default(),
            executor: Handle::current(),
            machines: Mutex::default(),
            fail_stops: Arc::default(),
        })
    }

    /// A new machine with an empty disk, off.
    pub fn machine(&self) -> Arc<Machine> {
        let mut machines = self.machines.lock().unwrap();
        let id = machines.len() as MachineId + 1;
        let node = self.executor.create_node().name(format!("machine-{id}")).build();
        let rng = self.rng.child(&format!("machine {id}"));
        let clock = SimClock::draw(&mut rng.stream("clock"), 500);
        let shims = self.executor.create_node().name(format!("shims-{id}")).build();
        let (ledger, trace) = (self.ledger.clone(), self.trace.clone());
        let machine = Arc::new(Machine {
            id,
            node: node.id(),
            disk: SimDisk::new(format!("disk of machine {id}")),
            stall: Stall::default(),
            crowd: Crowd::default(),
            shims: shims.id(),
            launcher: Arc::new(SimLauncher::new(id, clock.clone(), shims, ledger, trace)),
            clock,
            rng,
            network: self.network.clone(),
            trace: self.trace.clone(),
            executor: self.executor.clone(),
            fail_stops: self.fail_stops.clone(),
            boot: Mutex::default(),
        });
        machines.push(machine.clone());
        machine
    }

    /// The boots that have ended themselves so far.
    pub fn fail_stops(&self) -> Vec<FailStop> {
        self.fail_stops.lock().unwrap().clone()
    }
}

/// One machine: its disk and its clock outlive its boots.
pub struct Machine {
    /// Its number, from 1.
    pub id: MachineId,
    /// Its disk.
    pub disk: SimDisk,
    /// Whether that is held up.
    pub stall: Stall,
    /// Whether its tasks wait for their turns.
    pub crowd: Crowd,
    /// Its clock.
    pub clock: SimClock,
    rng: Rng,
    node: madsim::task::NodeId,
    shims: madsim::task::NodeId,
    launcher: Arc<SimLauncher>,
    network: Arc<SimNetwork>,
    trace: Arc<Trace>,
    executor: Handle,
    fail_stops: Arc<Mutex<Vec<FailStop>>>,
    boot: Mutex<Boot>,
}

#[derive(Default)]
struct Boot {
    count: u64,
    /// The running boot's tasks; `None` while the machine is off.
    spawn: Option<Arc<SimSpawn>>,
    /// When it went off last, in the world's time.
    off_since: Duration,
}

impl Machine {
    /// The address on which its node listens after it has moved so often.
    pub fn address(&self, moves: u16) -> Address {
        format!("machine-{}:{}", self.id, 7400 + moves).parse().expect("a plain host name and port")
    }

    /// Whether it is on.
    pub fn is_up(&self) -> bool {
        self.boot.lock().unwrap().spawn.is_some()
    }

    /// For how long it has been off; `None` while it is on.
    pub fn off_for(&self) -> Option<Duration> {
        let boot = self.boot.lock().unwrap();
        boot.spawn.is_none().then(|| TimeHandle::current().elapsed().saturating_sub(boot.off_since))
    }

    /// Switches it on and gives the seams of this boot and a handle to run things on it.
    ///
    /// # Panics
    /// If it is on.
    pub fn boot(self: &Arc<Self>) -> (Io, NodeHandle) {
        let mut boot = self.boot.lock().unwrap();
        assert!(boot.spawn.is_none(), "machine {} is on", self.id);
        boot.count += 1;
        self.trace.event(format_args!("boot {} #{}", self.id, boot.count));
        self.trace.note(|| Note::Machine(self.id, "boot"));
        // A killed madsim node takes new tasks only after a restart.
        self.executor.restart(self.node);
        let node = self.executor.get_node(self.node).expect("the node was created with the machine");
        let rng = self.rng.child(&format!("boot {}", boot.count));
        // A machine may come back with another memory, or its operator may have miscounted.
        if boot.count > 1 {
            self.launcher.set_claim(*rng.stream("claim").pick(&[4, 4, 4, 3, 8]));
        }
        let weak = Arc::downgrade(self);
        let count = boot.count;
        let fail_stop = Arc::new(move |fault: Fault| {
            if let Some(machine) = weak.upgrade() {
                machine.fail_stop(count, &fault);
            }
        });
        let spawn = Arc::new(SimSpawn::new(
            node.clone(),
            rng.child("spawn"),
            (self.stall.clone(), self.crowd.clone()),
            fail_stop,
        ));
        boot.spawn = Some(spawn.clone());
        let io = Io {
            clock: Arc::new(self.clock.clone()),
            network: self.network.attach(self.id, node.clone()),
            disk: self.disk.boot(),
            launcher: Some(self.launcher.clone()),
            spawn,
            rng: rng.child("node"),
        };
        (io, node)
    }

    /// Switches it off in the given way, in the middle of whatever it does. A power cut also meets what a node that is off
    /// has left: what it did not sync, and what it started.
    pub fn down(&self, how: Down) {
        let (spawn, count) = {
            let mut boot = self.boot.lock().unwrap();
            if boot.spawn.is_some() {
                boot.off_since = TimeHandle::current().elapsed();
            }
            (boot.spawn.take(), boot.count)
        };
        let mut rng = self.rng.stream(&format!("down {count}"));
        if let Some(spawn) = spawn {
            self.trace.event(format_args!("down {} {how:?}", self.id));
            self.trace.note(|| Note::Machine(self.id, "down"));
            // First the disk: destructors that run below must not be able to write.
            let writable = rng.range(0, 40);
            if !matches!(how, Down::Exit) {
                self.disk.cut_after(writable);
            }
            spawn.run_pending();
            if !matches!(how, Down::Exit) {
                self.disk.cut_after(0);
            }
            if matches!(how, Down::Power(_)) {
                self.network.silence(self.id);
            }
            self.network.detach(self.id);
            self.executor.kill(self.node);
        }
        if let Down::Power(fate) = how {
            self.disk.power_cut(fate, &mut rng);
            self.executor.kill(self.shims);
            self.executor.restart(self.shims);
            self.launcher.power_cut(self.executor.get_node(self.shims).expect("created with the machine"));
        }
    }

    /// Cuts its disk at the next of some marked places that it comes by, and says which: its power is to go then.
    pub fn crash_at(&self, marks: Marks) -> oneshot::Receiver<&'static str> {
        let (sender, receiver) = oneshot::channel();
        let (disk, mut rng) = (self.disk.clone(), self.rng.stream(&format!("crash {marks:?}")));
        let hit = Box::new(move |place| {
            disk.try_cut_after(*rng.pick(&[0, 0, 1, 2]));
            let _ = sender.send(place);
        });
        mark::set(Trap { node: self.node, marks, hit });
        receiver
    }

    /// It does not crash at marked places any more.
    pub fn crash_nowhere(&self) {
        mark::unset(self.node);
    }

    /// What its disk holds is damaged. The power is off.
    pub fn rot(&self, damage: Damage, files: Files, permille: u64) {
        let boots = self.disk.counts().boots;
        self.disk.rot(damage, files, permille, &mut self.rng.stream(&format!("rot {boots}")));
        self.trace.event(format_args!("rot {}: {} pages", self.id, self.disk.counts().rotten));
    }

    /// Its disk holds a copy of what was durable on another machine's; gives what it held.
    pub fn take_copy(&self, copy: Contents) -> Contents {
        self.down(Down::Power(CLEAN_CUT));
        self.trace.event(format_args!("machine {} has a copy of another's disk", self.id));
        self.disk.swap(copy)
    }

    /// Its disk holds its own again.
    pub fn take_own(&self, own: Contents) {
        self.down(Down::Power(CLEAN_CUT));
        self.trace.event(format_args!("machine {} has its own disk", self.id));
        self.disk.swap(own);
    }

    /// Another machine takes its place, with an empty disk and nothing that runs.
    pub fn replace(&self) {
        self.down(Down::Power(CLEAN_CUT));
        self.trace.event(format_args!("replace {}", self.id));
        self.disk.wipe();
        self.launcher.wipe();
    }

    /// What its attempts run in is removed.
    pub fn tidy(&self) {
        self.trace.event(format_args!("tidy {}", self.id));
        self.launcher.tidy();
    }

    /// Stops its tasks without telling them; its clock runs on.
    pub fn pause(&self) {
        self.trace.event(format_args!("pause {}", self.id));
        self.trace.note(|| Note::Machine(self.id, "pause"));
        self.executor.pause(self.node);
    }

    /// Ends a pause.
    pub fn resume(&self) {
        self.trace.event(format_args!("resume {}", self.id));
        self.trace.note(|| Note::Machine(self.id, "resume"));
        self.executor.resume(self.node);
    }

    fn fail_stop(&self, boot: u64, fault: &Fault) {
        {
            let now = self.boot.lock().unwrap();
            if now.count != boot || now.spawn.is_none() {
                return; // it is going down anyway: what fails now fails because its disk is gone
            }
        }
        self.trace.event(format_args!("fail-stop {}: {fault}", self.id));
        self.trace.note(|| Note::Machine(self.id, "fail-stop"));
        let (why, suffered) = (fault.to_string(), self.disk.suffered());
        self.fail_stops.lock().unwrap().push(FailStop { machine: self.id, why, suffered });
        self.down(Down::Kill);
    }
}
