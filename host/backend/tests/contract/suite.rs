//! What the traits promise.

use std::time::Duration;

use agentlab_api::{ChannelKind, SandboxId, Vmid};
use agentlab_backend::{
    Backend, BackendError, CloneSpec, Firewall, Limits, MacAddress, Machine, Power, PowerOn, Shape, Stamp,
};
use async_trait::async_trait;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

pub(crate) use crate::disks::{
    a_volume_goes_to_one_machine_at_a_time_and_outlives_it,
    snapshots_with_memory_and_without_are_gone_back_to,
};
pub(crate) use crate::power::{
    a_machine_that_ends_without_us_is_stopped_and_whoever_waits_learns_it,
    a_machine_that_is_shut_down_is_off_whatever_its_guest_does,
    a_suspended_machine_stays_where_it_is_until_resumed, power_goes_on_and_off_and_every_repeat_is_success,
};
pub(crate) use crate::volumes::{
    a_sandbox_that_goes_back_leaves_its_volume_as_it_is, a_state_of_a_volume_is_kept_gone_back_to_and_copied,
    a_volume_of_somebody_else_is_never_touched, a_volume_that_a_running_machine_has_is_left_as_it_is,
    every_volume_is_listed_with_its_size_and_whoever_has_it,
};

/// The template every rig has.
pub(crate) const TEMPLATE: u32 = 9000;
/// What its guest writes to the console first.
pub(crate) const HELLO: &[u8] = b"hello from the tiny guest";
/// Long enough for whatever does happen.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A back end, and the hand of fate over it.
#[async_trait]
pub(crate) trait Rig: Send + Sync {
    fn backend(&self) -> &dyn Backend;
    /// The daemon ends and another starts: what it held in memory is gone.
    async fn restart(&mut self);
    /// The machine ends without us.
    async fn kill_from_outside(&self, vmid: Vmid);
    /// Returns once the guest has written to its console.
    async fn await_hello(&self, vmid: Vmid);
    async fn remove_template(&self);
    /// Whatever exists because of a machine, in words.
    fn leftovers(&self) -> Vec<String>;
}

pub(crate) fn vmid(raw: u32) -> Vmid {
    raw.try_into().unwrap()
}

pub(crate) fn stamp() -> Stamp {
    Stamp {
        sandbox: SandboxId::generate(),
        nonce: "0123456789abcdef".repeat(2),
    }
}

pub(crate) fn spec(raw: u32) -> CloneSpec {
    CloneSpec {
        vmid: vmid(raw),
        template: vmid(TEMPLATE),
        name: format!("sandbox-{raw}"),
        stamp: stamp(),
    }
}

pub(crate) fn shape() -> Shape {
    Shape {
        cores: 1,
        memory_mb: 64,
        root_size_gb: None,
        mac: MacAddress([2, 0, 0, 0, 3, 232]),
        limits: Limits::default(),
        place: None,
    }
}

pub(crate) fn no_cable() -> PowerOn {
    PowerOn { nic: None }
}

/// A stopped, configured machine.
pub(crate) async fn cloned(backend: &dyn Backend, raw: u32) -> CloneSpec {
    made(backend, spec(raw)).await
}

pub(crate) async fn made(backend: &dyn Backend, spec: CloneSpec) -> CloneSpec {
    backend.clone_template(&spec).await.unwrap();
    backend.configure(spec.vmid, &spec.stamp, &shape()).await.unwrap();
    spec
}

pub(crate) async fn switch_on(backend: &dyn Backend, spec: &CloneSpec) {
    backend
        .power_on(spec.vmid, &spec.stamp, no_cable())
        .await
        .unwrap();
}

pub(crate) async fn running(backend: &dyn Backend, raw: u32) -> CloneSpec {
    let spec = cloned(backend, raw).await;
    switch_on(backend, &spec).await;
    spec
}

/// Whether guests have a serial line of ours. A hypervisor that keeps it to itself keeps their console too.
fn has_serial(backend: &dyn Backend) -> bool {
    backend.channels().contains(&ChannelKind::Serial)
}

pub(crate) async fn power(backend: &dyn Backend, vmid: Vmid) -> Option<Power> {
    backend.inspect(vmid).await.unwrap().map(|machine| machine.power)
}

fn machine(spec: &CloneSpec, power: Power) -> Machine {
    Machine {
        vmid: spec.vmid,
        name: spec.name.clone(),
        power,
        stamp: Some(spec.stamp.clone()),
    }
}

pub(crate) async fn a_clone_repeated_is_one_machine_and_another_spec_is_a_conflict(rig: &mut dyn Rig) {
    let backend = rig.backend();
    let spec = spec(1000);
    let made = backend.clone_template(&spec).await.unwrap();
    assert_eq!(made, machine(&spec, Power::Stopped));
    assert_eq!(backend.clone_template(&spec).await.unwrap(), made);
    assert_eq!(backend.list().await.unwrap(), std::slice::from_ref(&made));

    let others = [
        CloneSpec {
            stamp: stamp(),
            ..spec.clone()
        },
        CloneSpec {
            name: "another".into(),
            ..spec.clone()
        },
        CloneSpec {
            template: vmid(9999),
            ..spec.clone()
        },
    ];
    for other in others {
        let answer = backend.clone_template(&other).await;
        assert!(
            matches!(answer, Err(BackendError::Conflict { vmid, .. }) if vmid == spec.vmid),
            "{answer:?}"
        );
    }
    assert_eq!(backend.inspect(spec.vmid).await.unwrap(), Some(made));
}

pub(crate) async fn a_foreign_stamp_is_refused_by_every_change_and_nothing_is_touched(rig: &mut dyn Rig) {
    let backend = rig.backend();
    let spec = running(backend, 1000).await;
    backend.place_seed(spec.vmid, &spec.stamp, b"seed").await.unwrap();
    let (at, foreign) = (spec.vmid, stamp());
    let answers = [
        backend.configure(at, &foreign, &shape()).await,
        backend.power_on(at, &foreign, no_cable()).await,
        backend.power_off(at, &foreign).await,
        backend.suspend(at, &foreign).await,
        backend.resume(at, &foreign).await,
        backend.place_seed(at, &foreign, b"other").await,
        backend.remove_seed(at, &foreign).await,
        backend.destroy(at, &foreign).await,
    ];
    for answer in answers {
        assert!(
            matches!(answer, Err(BackendError::NotOurs { vmid, .. }) if vmid == at),
            "{answer:?}"
        );
    }
    assert_eq!(
        backend.inspect(at).await.unwrap(),
        Some(machine(&spec, Power::Running))
    );
    assert!(backend.has_seed(at).await.unwrap());
}

pub(crate) async fn a_second_opener_takes_the_channel_over_and_the_end_of_the_machine_ends_it(
    rig: &mut dyn Rig,
) {
    let backend = rig.backend();
    if !has_serial(backend) {
        let spec = running(backend, 1000).await;
        assert!(backend.open_channel(spec.vmid).await.unwrap().is_none());
        return;
    }
    let spec = cloned(backend, 1000).await;
    let answer = backend.open_channel(spec.vmid).await.map(|_| ());
    assert!(matches!(answer, Err(BackendError::Refused { .. })), "{answer:?}");

    backend
        .power_on(spec.vmid, &spec.stamp, no_cable())
        .await
        .unwrap();
    let mut first = backend.open_channel(spec.vmid).await.unwrap().unwrap();
    let mut second = backend.open_channel(spec.vmid).await.unwrap().unwrap();
    let mut byte = [0];
    let read = timeout(SOON, first.read(&mut byte))
        .await
        .expect("the first opener was not cut off");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    let still_open = timeout(Duration::from_millis(300), second.read(&mut byte)).await;
    assert!(
        still_open.is_err(),
        "the second opener was cut off too: {still_open:?}"
    );
    backend.power_off(spec.vmid, &spec.stamp).await.unwrap();
    let read = timeout(SOON, second.read(&mut byte))
        .await
        .expect("the channel outlived its machine");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

pub(crate) async fn a_restarted_daemon_finds_the_running_machine_and_its_channel(rig: &mut dyn Rig) {
    let running_one = running(rig.backend(), 1000).await;
    let stopped_one = cloned(rig.backend(), 1001).await;
    let held = rig.backend().open_channel(running_one.vmid).await.unwrap();
    assert_eq!(held.is_some(), has_serial(rig.backend()));
    drop(held);
    rig.restart().await;
    let backend = rig.backend();
    let adopted = backend.adopt().await.unwrap();
    assert_eq!(
        adopted,
        [
            machine(&running_one, Power::Running),
            machine(&stopped_one, Power::Stopped)
        ]
    );
    let again = backend.open_channel(running_one.vmid).await.unwrap();
    assert_eq!(again.is_some(), has_serial(backend));
    backend
        .suspend(running_one.vmid, &running_one.stamp)
        .await
        .unwrap();
    assert_eq!(power(backend, running_one.vmid).await, Some(Power::Suspended));
    let waiting = timeout(SOON, backend.stopped(running_one.vmid));
    let (waited, destroyed) = tokio::join!(waiting, backend.destroy(running_one.vmid, &running_one.stamp));
    waited.unwrap().unwrap();
    destroyed.unwrap();
    assert_eq!(
        backend.list().await.unwrap(),
        [machine(&stopped_one, Power::Stopped)]
    );
}

pub(crate) async fn destroy_leaves_nothing_and_is_success_when_there_is_nothing(rig: &mut dyn Rig) {
    let backend = rig.backend();
    let running_one = running(backend, 1000).await;
    let stopped_one = cloned(backend, 1001).await;
    for spec in [&running_one, &stopped_one] {
        backend.place_seed(spec.vmid, &spec.stamp, b"seed").await.unwrap();
    }
    assert!(!rig.leftovers().is_empty());
    for spec in [&running_one, &stopped_one] {
        for _ in 0..2 {
            backend.destroy(spec.vmid, &spec.stamp).await.unwrap();
        }
        assert_eq!(backend.inspect(spec.vmid).await.unwrap(), None);
    }
    assert_eq!(rig.leftovers(), Vec::<String>::new());
    let reused = spec(1000);
    backend.clone_template(&reused).await.unwrap();
    assert!(!backend.has_seed(reused.vmid).await.unwrap());
}

pub(crate) async fn of_an_absent_machine_nothing_is_known_and_undoing_is_success(rig: &mut dyn Rig) {
    let (backend, at, ours) = (rig.backend(), vmid(1000), stamp());
    assert_eq!(backend.inspect(at).await.unwrap(), None);
    assert!(!backend.has_seed(at).await.unwrap());
    backend.power_off(at, &ours).await.unwrap();
    backend.remove_seed(at, &ours).await.unwrap();
    backend.destroy(at, &ours).await.unwrap();
    timeout(SOON, backend.stopped(at)).await.unwrap().unwrap();
    let answers = [
        backend.configure(at, &ours, &shape()).await,
        backend.power_on(at, &ours, no_cable()).await,
        backend.suspend(at, &ours).await,
        backend.resume(at, &ours).await,
        backend.place_seed(at, &ours, b"seed").await,
        backend.usage(at).await.map(drop),
        backend.open_channel(at).await.map(drop),
        backend.console(at, 10).await.map(drop),
    ];
    for answer in answers {
        assert!(
            matches!(answer, Err(BackendError::NoSuchMachine { vmid }) if vmid == at),
            "{answer:?}"
        );
    }
    assert_eq!(rig.leftovers(), Vec::<String>::new());
}

pub(crate) async fn a_seed_is_placed_replaced_and_removed(rig: &mut dyn Rig) {
    let backend = rig.backend();
    let spec = cloned(backend, 1000).await;
    assert!(!backend.has_seed(spec.vmid).await.unwrap());
    for seed in [b"one", b"two"] {
        backend.place_seed(spec.vmid, &spec.stamp, seed).await.unwrap();
        assert!(backend.has_seed(spec.vmid).await.unwrap());
    }
    backend
        .power_on(spec.vmid, &spec.stamp, no_cable())
        .await
        .unwrap();
    for _ in 0..2 {
        backend.remove_seed(spec.vmid, &spec.stamp).await.unwrap();
        assert!(!backend.has_seed(spec.vmid).await.unwrap());
    }
}

pub(crate) async fn a_template_that_is_not_there_is_named_with_what_to_do(rig: &mut dyn Rig) {
    let backend = rig.backend();
    assert!(
        backend
            .templates()
            .await
            .unwrap()
            .iter()
            .any(|template| template.vmid == vmid(TEMPLATE))
    );
    rig.remove_template().await;
    let answer = backend.clone_template(&spec(1000)).await;
    assert!(
        matches!(answer, Err(BackendError::Template { hint: Some(_), .. })),
        "{answer:?}"
    );
    assert!(
        !backend
            .templates()
            .await
            .unwrap()
            .iter()
            .any(|template| template.vmid == vmid(TEMPLATE))
    );
    assert_eq!(rig.leftovers(), Vec::<String>::new());
}

pub(crate) async fn a_disk_only_grows_and_an_unshaped_machine_does_not_start(rig: &mut dyn Rig) {
    let backend = rig.backend();
    let spec = spec(1000);
    backend.clone_template(&spec).await.unwrap();
    let answer = backend.power_on(spec.vmid, &spec.stamp, no_cable()).await;
    assert!(matches!(answer, Err(BackendError::Refused { .. })), "{answer:?}");
    let sized = |size| Shape {
        root_size_gb: Some(size),
        ..shape()
    };
    for _ in 0..2 {
        backend
            .configure(spec.vmid, &spec.stamp, &sized(4))
            .await
            .unwrap();
    }
    let answer = backend.configure(spec.vmid, &spec.stamp, &sized(3)).await;
    assert!(matches!(answer, Err(BackendError::Refused { .. })), "{answer:?}");
    backend
        .power_on(spec.vmid, &spec.stamp, no_cable())
        .await
        .unwrap();
}

pub(crate) async fn a_hypervisors_own_firewall_stands_or_is_refused(rig: &mut dyn Rig) {
    let backend = rig.backend();
    let spec = cloned(backend, 1000).await;
    let (at, ours) = (spec.vmid, &spec.stamp);
    let mut walled = shape();
    walled.limits.firewall = Some(Firewall::default());
    match backend.configure(at, ours, &walled).await {
        Ok(()) => {
            backend.configure(at, ours, &walled).await.unwrap();
            backend.power_on(at, ours, no_cable()).await.unwrap();
        }
        Err(error) => assert!(matches!(error, BackendError::Refused { .. }), "{error}"),
    }
    backend.destroy(at, ours).await.unwrap();
    assert_eq!(rig.leftovers(), Vec::<String>::new());
}

pub(crate) async fn the_console_shows_the_end_of_what_the_guest_wrote(rig: &mut dyn Rig) {
    let backend = rig.backend();
    let spec = running(backend, 1000).await;
    if !has_serial(backend) {
        let answer = backend.console(spec.vmid, 4096).await;
        assert!(
            matches!(answer, Err(BackendError::Unsupported { .. })),
            "{answer:?}"
        );
        return;
    }
    rig.await_hello(spec.vmid).await;
    assert!(backend.console(spec.vmid, 4096).await.unwrap().starts_with(HELLO));
    assert_eq!(backend.console(spec.vmid, 5).await.unwrap().len(), 5);
    backend.power_off(spec.vmid, &spec.stamp).await.unwrap();
    assert!(
        !backend.console(spec.vmid, 4096).await.unwrap().is_empty(),
        "the console went with the power"
    );
}

/// Every promise as a test of its own, against one rig. The rig expression is awaited; `None` means that it cannot
/// be had here and has said so. `genuine` is for a node of the reader's: only where tests that are ignored are asked for.
macro_rules! contract {
    ($name:ident, $rig:expr) => {
        $crate::suite::contract!(@every $name, $rig, [], a_template_that_is_not_there_is_named_with_what_to_do,);
    };
    (genuine $name:ident, $rig:expr) => {
        $crate::suite::contract!(@every $name, $rig, [#[ignore = "needs a node: AGENTLAB_PVE_URL"]],);
    };
    (@every $name:ident, $rig:expr, $marks:tt, $($more:ident,)*) => {
        $crate::suite::contract!(@tests $name, $rig, $marks,
            $($more,)*
            a_clone_repeated_is_one_machine_and_another_spec_is_a_conflict,
            a_foreign_stamp_is_refused_by_every_change_and_nothing_is_touched,
            power_goes_on_and_off_and_every_repeat_is_success,
            a_machine_that_is_shut_down_is_off_whatever_its_guest_does,
            a_suspended_machine_stays_where_it_is_until_resumed,
            a_machine_that_ends_without_us_is_stopped_and_whoever_waits_learns_it,
            a_second_opener_takes_the_channel_over_and_the_end_of_the_machine_ends_it,
            a_restarted_daemon_finds_the_running_machine_and_its_channel,
            destroy_leaves_nothing_and_is_success_when_there_is_nothing,
            of_an_absent_machine_nothing_is_known_and_undoing_is_success,
            a_seed_is_placed_replaced_and_removed,
            a_disk_only_grows_and_an_unshaped_machine_does_not_start,
            a_hypervisors_own_firewall_stands_or_is_refused,
            the_console_shows_the_end_of_what_the_guest_wrote,
            a_volume_goes_to_one_machine_at_a_time_and_outlives_it,
            snapshots_with_memory_and_without_are_gone_back_to,
            a_volume_of_somebody_else_is_never_touched,
            a_state_of_a_volume_is_kept_gone_back_to_and_copied,
            a_volume_that_a_running_machine_has_is_left_as_it_is,
            every_volume_is_listed_with_its_size_and_whoever_has_it,
            a_sandbox_that_goes_back_leaves_its_volume_as_it_is
        );
    };
    (@tests $name:ident, $rig:expr, $marks:tt, $($test:ident),+) => {
        #[cfg(test)]
        mod $name {
            $(
                $crate::suite::contract!(@test $marks $test, $rig);
            )+
        }
    };
    (@test [$($mark:tt)*] $test:ident, $rig:expr) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        $($mark)*
        async fn $test() {
            if let Some(mut rig) = $rig.await {
                crate::suite::$test(&mut rig).await;
            }
        }
    };
}
pub(crate) use contract;
