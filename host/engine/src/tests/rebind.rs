//! A workspace that changes hands: whatever happens, exactly one of two sandboxes has it in the end, and nothing of the
//! old one goes before the new one's guest has mounted it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use agentlab_api::{ErrorCode, SandboxId, SandboxState, Vmid, WorkspaceRebind, WorkspaceView};
use agentlab_backend::fake::{Call, Fake};
use agentlab_backend::{BackendError, Power, Volumes};
use agentlab_protocol::message::Phase;
use agentlab_protocol::seed::Seed;
use agentlab_protocol::workspace::WorkspaceNews;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::lab::{Guest, Lab, vmid};
use super::process::{End, Plan, World, numbered};
use super::wires::Fault;
use super::workspace::{NAME, PACE, PATIENCE, WRITTEN, held, lab_with_workspace, make, remove, until};
use crate::{GuestOrigin, GuestRefusal, Moment, Point};

/// Longest handing over, in its own time.
const LONGEST: Duration = Duration::from_secs(3600);
/// A disk that is where the workspace would have to be.
const IN_THE_WAY: &str = "other";

/// How far a guest has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Said {
    Nothing,
    Redeemed,
    Acknowledged,
    /// And has mounted what was attached to its machine.
    Mounted,
    /// And has let go of it.
    LetGo,
}

/// The guests of all machines. They outlive every daemon: one each time that a machine is powered on.
#[derive(Debug, Default)]
struct Guests(RefCell<BTreeMap<PoweredOn, (Guest, Said)>>);

/// A sandbox, and how often its machine was powered on.
type PoweredOn = ([u8; 16], u32);

impl Guests {
    /// Until it is dropped: each is let in, mounts what its machine has, and lets go of it when it is asked to.
    async fn play(&self, lab: &Lab) {
        loop {
            self.assert_no_work_is_lost(&lab.backend);
            for vmid in lab.backend.vmids() {
                if lab.backend.power(vmid) == Some(Power::Running) {
                    // One whose daemon does not answer asks again.
                    drop(self.speak(lab, vmid).await);
                }
            }
            sleep(PACE).await;
        }
    }

    /// Every guest here speaks: none is switched off, or loses its disk, before it has let go.
    fn assert_no_work_is_lost(&self, backend: &Fake) {
        for ((_, power_ons), (guest, said)) in self.0.borrow().iter() {
            let vmid = vmid(guest.seed.vmid);
            if *said == Said::Mounted {
                assert_eq!(
                    backend.power(vmid),
                    Some(Power::Running),
                    "{vmid} was switched off"
                );
                assert_eq!(backend.power_ons(vmid), *power_ons, "{vmid} was switched off");
                let mut volumes = backend.volumes().into_iter();
                let has = volumes.any(|volume| volume != IN_THE_WAY && backend.holder(&volume) == Some(vmid));
                assert!(has, "the disk of {vmid} was taken");
            }
        }
    }

    async fn speak(&self, lab: &Lab, vmid: Vmid) -> Result<(), GuestRefusal> {
        let Some(seed) = lab.backend.booted_with(vmid) else {
            return Ok(());
        };
        let seed = Seed::decode(&seed).unwrap();
        let key = (seed.sandbox, lab.backend.power_ons(vmid));
        let known = self.0.borrow().get(&key).cloned();
        let (mut guest, said) = known.unwrap_or_else(|| {
            let guest = Guest {
                origin: GuestOrigin::Address(seed.address),
                seed,
                key: [9; 32],
                session: None,
                runner_version: "0.1.0",
            };
            (guest, Said::Nothing)
        });
        let mut has = None;
        for volume in lab.backend.volumes() {
            if volume != IN_THE_WAY && lab.backend.holder(&volume) == Some(vmid) {
                has = Some(volume);
            }
        }
        let said = match (said, has) {
            (Said::Nothing, _) => {
                guest.redeem(lab).await?;
                Said::Redeemed
            }
            (Said::Redeemed, _) => {
                let session = guest.authenticate(lab).await?;
                lab.engine().acknowledge(&session).await?;
                Said::Acknowledged
            }
            (Said::Acknowledged, Some(volume)) => {
                lab.backend.write_volume(&volume, WRITTEN);
                guest.say(lab, Phase::Idle, Some(WorkspaceNews::Mounted)).await?;
                Said::Mounted
            }
            (said @ (Said::Acknowledged | Said::Mounted | Said::LetGo), _) => {
                if guest.say(lab, Phase::Idle, None).await?.release_workspace {
                    // Whoever hears of it.
                    self.0.borrow_mut().insert(key, (guest.clone(), Said::LetGo));
                    guest.say(lab, Phase::Idle, Some(WorkspaceNews::Released)).await?;
                    return Ok(());
                }
                said
            }
        };
        self.0.borrow_mut().insert(key, (guest, said));
        Ok(())
    }

    fn has_mounted(&self, sandbox: SandboxId) -> bool {
        let guests = self.0.borrow();
        let mut of_sandbox = guests.iter().filter(|((of, _), _)| of == sandbox.as_bytes());
        of_sandbox.any(|(_, (_, said))| *said >= Said::Mounted)
    }
}

fn to_new(keep_old: bool) -> WorkspaceRebind {
    WorkspaceRebind {
        profile: "demo".into(),
        ttl_minutes: None,
        keep_old,
    }
}

/// Waits until a rebind has ended in one way or the other.
async fn rebound(lab: &Lab) -> WorkspaceView {
    loop {
        let view = lab.engine().workspace(NAME).await.unwrap();
        if view.moving_to.is_none() {
            return view;
        }
        sleep(PACE).await;
    }
}

#[tokio::test]
async fn a_workspace_is_handed_to_a_new_sandbox_and_the_old_one_goes_last() {
    let lab = lab_with_workspace().await;
    let nobody = lab.engine().rebind_workspace(NAME, to_new(false)).await;
    assert!(nobody.unwrap_err().hint.unwrap().contains("sandbox new"));
    let old = held(&lab, Some(NAME)).await;
    let life = async {
        until(&lab, old, SandboxState::Running).await;
        let begun = lab.engine().rebind_workspace(NAME, to_new(false)).await.unwrap();
        let again = lab.engine().rebind_workspace(NAME, to_new(false)).await;
        assert_eq!(again.unwrap_err().code, ErrorCode::StateConflict);
        let view = timeout(PATIENCE, rebound(&lab)).await.unwrap();
        assert_eq!((view.sandbox, view.trouble), (begun.moving_to, None));
        until(&lab, old, SandboxState::Destroyed).await;
        let new = until(&lab, begun.moving_to.unwrap(), SandboxState::Running).await;
        assert_eq!(new.workspace, Some(view.id));
    };
    let guests = Guests::default();
    tokio::select! {
        () = guests.play(&lab) => {}
        () = life => {}
    }
}

#[tokio::test]
async fn an_old_sandbox_that_is_to_be_kept_stays_stopped_without_the_workspace() {
    let lab = lab_with_workspace().await;
    let old = held(&lab, Some(NAME)).await;
    let life = async {
        until(&lab, old, SandboxState::Running).await;
        let begun = lab.engine().rebind_workspace(NAME, to_new(true)).await.unwrap();
        let view = timeout(PATIENCE, rebound(&lab)).await.unwrap();
        assert_eq!(view.sandbox, begun.moving_to);
        assert_eq!(until(&lab, old, SandboxState::Stopped).await.workspace, None);
    };
    let guests = Guests::default();
    tokio::select! {
        () = guests.play(&lab) => {}
        () = life => {}
    }
}

/// What a hypervisor says that will not do something, however often it is asked.
fn no(action: &'static str) -> BackendError {
    BackendError::Refused {
        action,
        vmid: vmid(1001),
        reason: "it will not".to_owned(),
        hint: None,
    }
}

#[tokio::test]
async fn whichever_step_of_the_new_sandbox_fails_the_old_one_has_the_disk_and_runs() {
    tokio::join!(
        put_back_after(Call::CloneTemplate),
        put_back_after(Call::Configure),
        put_back_after(Call::PlaceSeed),
        put_back_after(Call::PowerOn),
        // Those of its second start, when it is given the disk.
        put_back_after(Call::AttachVolume),
        put_back_after(Call::GrowVolume),
    );
}

async fn put_back_after(step: Call) {
    let lab = lab_with_workspace().await;
    let old = held(&lab, Some(NAME)).await;
    let life = async {
        let record = until(&lab, old, SandboxState::Running).await;
        let volume = lab.engine().workspace(NAME).await.unwrap().volume.unwrap();
        lab.backend.fail_next(step, no("step"));
        lab.engine().rebind_workspace(NAME, to_new(false)).await.unwrap();
        let view = timeout(PATIENCE, rebound(&lab)).await.unwrap();
        assert_eq!(view.sandbox, Some(old), "{step:?}");
        let why = view.trouble.unwrap_or_default();
        assert!(why.contains("it will not"), "{step:?}: {why}");
        lab.until("nothing is left of the new one", || {
            lab.backend.stamp(vmid(1001)).is_none()
        })
        .await;
        let now = until(&lab, old, SandboxState::Running).await;
        assert_eq!((now.workspace, now.vmid), (record.workspace, record.vmid));
        assert_eq!(lab.backend.holder(&volume), Some(record.vmid), "{step:?}");
        assert_eq!(lab.backend.volume(&volume), Some((1, WRITTEN)), "{step:?}");
    };
    let guests = Guests::default();
    tokio::select! {
        () = guests.play(&lab) => {}
        () = life => {}
    }
}

/// How a rebind goes when nobody disturbs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    HandedOn,
    /// The new sandbox cannot be given the disk, however often it is tried.
    PutBack,
}

/// What outlives every daemon.
#[derive(Debug)]
struct Cast {
    ending: Ending,
    guests: Guests,
    old: Cell<Option<SandboxId>>,
    new: Cell<Option<SandboxId>>,
}

impl Cast {
    /// A world in which a sandbox runs that has the workspace.
    fn begin(ending: Ending) -> (World, Self) {
        let mut world = World::new(|_| {});
        let cast = Self {
            ending,
            guests: Guests::default(),
            old: Cell::default(),
            new: Cell::default(),
        };
        let (end, _) = world.process(Plan::Live, async |lab| {
            let life = async {
                make(lab).await;
                let old = held(lab, Some(NAME)).await;
                cast.old.set(Some(old));
                while !cast.guests.has_mounted(old) {
                    sleep(PACE).await;
                }
            };
            tokio::select! {
                () = cast.guests.play(lab) => {}
                () = life => {}
            }
        });
        assert_eq!(end, End::Finished);
        world.lab().backend.forget_calls();
        (world, cast)
    }

    /// Has the workspace handed on, from wherever that stands, and sees how it ended.
    async fn live(&self, lab: &Lab) {
        let life = async {
            tokio::select! {
                () = self.guests.play(lab) => {}
                () = self.watch(&lab.backend) => {}
                () = self.operator(lab) => {}
            }
        };
        if timeout(LONGEST, life).await.is_err() {
            panic!(
                "it does not end: {self:#?}\n{:#?}\n{:#?}",
                lab.store.workspaces().await,
                lab.store.sandboxes(true).await
            );
        }
    }

    /// Nothing of the old machine goes before the new one's guest has the disk; and who is in the way stays there.
    async fn watch(&self, backend: &Fake) {
        loop {
            if self.ending == Ending::HandedOn && backend.stamp(vmid(1000)).is_none() {
                let new = self.new.get().unwrap();
                assert!(self.guests.has_mounted(new), "the old one went first");
            }
            if self.ending == Ending::PutBack
                && backend.holder(IN_THE_WAY).is_none()
                && let Some(stamp) = backend.stamp(vmid(1001))
            {
                backend.create_volume(IN_THE_WAY, 1).await.unwrap();
                drop(backend.attach_volume(IN_THE_WAY, vmid(1001), &stamp).await);
            }
            sleep(PACE).await;
        }
    }

    async fn operator(&self, lab: &Lab) {
        let old = self.old.get();
        loop {
            let view = lab.engine().workspace(NAME).await;
            let Ok(view) = view else { break };
            if view.moving_to.is_some() {
                self.new.set(view.moving_to);
            } else if view.sandbox != old || view.trouble.is_some() {
                break;
            } else {
                drop(lab.engine().rebind_workspace(NAME, to_new(false)).await);
            }
            sleep(PACE).await;
        }
        let (old, new) = (old.unwrap(), self.new.get().unwrap());
        let (stays, goes) = match self.ending {
            Ending::HandedOn => (new, old),
            Ending::PutBack => (old, new),
        };
        while lab.store.sandbox(goes).await.unwrap().unwrap().state != SandboxState::Destroyed {
            sleep(PACE).await;
        }
        if let Ok(view) = lab.engine().workspace(NAME).await
            && view.sandbox.is_some()
        {
            assert_eq!(view.sandbox, Some(stays), "{view:#?}");
            let why = view.trouble.unwrap_or_default();
            assert_eq!(
                why.contains("another volume"),
                self.ending == Ending::PutBack,
                "{why}"
            );
        }
        self.clean_up(lab, stays).await;
    }

    /// Nothing is left but what was made before.
    async fn clean_up(&self, lab: &Lab, stays: SandboxId) {
        drop(lab.backend.destroy_volume(IN_THE_WAY).await);
        while lab.store.sandbox(stays).await.unwrap().unwrap().state != SandboxState::Destroyed {
            drop(lab.engine().destroy_sandbox(&stays.to_string(), true).await);
            sleep(PACE).await;
        }
        remove(lab).await;
        lab.assert_empty().await;
        let all = lab.store.sandboxes(true).await.unwrap();
        assert_eq!(all.len(), 2, "one that nobody asked for: {all:#?}");
    }
}

/// What an undisturbed rebind reaches, each moment with how often it was reached before.
fn moments(ending: Ending) -> Vec<((Point, Moment), usize)> {
    let (mut world, cast) = Cast::begin(ending);
    let (end, reached) = world.process(Plan::Live, async |lab| cast.live(lab).await);
    assert_eq!(end, End::Finished);
    numbered(&reached)
}

/// Threads of the store take their own time, so that a beat of a guest more or less comes: then once more.
const TRIES: usize = 5;

fn killed_at_every_moment(ending: Ending) {
    for (at, nth) in moments(ending) {
        let (point, moment) = at;
        println!("{ending:?}, killed {moment:?} {point} ({nth})");
        let reached = (0..TRIES).any(|_| {
            let (mut world, cast) = Cast::begin(ending);
            let (end, _) = world.process(Plan::Die { at, nth }, async |lab| cast.live(lab).await);
            if end == End::Killed {
                let (rest, _) = world.process(Plan::Live, async |lab| cast.live(lab).await);
                assert_eq!(rest, End::Finished);
            }
            end == End::Killed
        });
        assert!(reached, "{ending:?} never came to {moment:?} {point} ({nth})");
    }
}

#[test]
fn a_workspace_is_handed_on_though_the_daemon_is_killed_at_any_commit() {
    killed_at_every_moment(Ending::HandedOn);
}

#[test]
fn a_workspace_is_put_back_though_the_daemon_is_killed_at_any_commit() {
    killed_at_every_moment(Ending::PutBack);
}

/// Calls that change the world.
fn changes(backend: &Fake) -> usize {
    let calls = backend.calls();
    let changing = calls.iter().filter(|logged| {
        matches!(
            logged.call,
            Call::CloneTemplate
                | Call::Configure
                | Call::PlaceSeed
                | Call::RemoveSeed
                | Call::PowerOn
                | Call::PowerOff
                | Call::AttachVolume
                | Call::GrowVolume
                | Call::DetachVolume
                | Call::Destroy
        )
    });
    changing.count()
}

#[test]
fn a_workspace_ends_in_the_same_place_though_the_daemon_is_killed_within_any_call() {
    for ending in [Ending::HandedOn, Ending::PutBack] {
        for nth in 1.. {
            println!("{ending:?}, killed in change {nth}");
            let (mut world, cast) = Cast::begin(ending);
            let backend = world.lab().backend.clone();
            // Long enough to be seen under way.
            backend.delay(None, PACE);
            let within = async {
                while changes(&backend) < nth {
                    sleep(PACE / 10).await;
                }
            };
            let (end, _) = world.process_until(Plan::Live, within, async |lab| cast.live(lab).await);
            if end == End::Finished {
                assert!(nth > 20, "no more than {nth} calls");
                break;
            }
            backend.delay(None, Duration::ZERO);
            let (end, _) = world.process(Plan::Live, async |lab| cast.live(lab).await);
            assert_eq!(end, End::Finished);
        }
        for (call, least) in [("attach", 2), ("set_trust", 6), ("detach", 1)] {
            for nth in 0.. {
                println!("{ending:?}, killed in {call} {nth} of the policy");
                let (mut world, cast) = Cast::begin(ending);
                let reached = Arc::new(Notify::new());
                let wires = &world.lab().wires;
                wires.fault(call, wires.count(call) + nth, Fault::Hang(reached.clone()));
                let (end, _) = world.process_until(Plan::Live, reached.notified(), async |lab| {
                    cast.live(lab).await;
                });
                if end == End::Finished {
                    assert!(nth >= least, "no more than {nth} times {call}");
                    break;
                }
                let (end, _) = world.process(Plan::Live, async |lab| cast.live(lab).await);
                assert_eq!(end, End::Finished);
            }
        }
    }
}
