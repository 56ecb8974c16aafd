//! What the traits promise of a machine's power.

use std::time::Duration;

use agentlab_backend::{BackendError, Power, Shape};
use tokio::time::timeout;

use crate::suite::{Rig, SOON, cloned, no_cable, power, running, shape, stamp, vmid};

pub(crate) async fn power_goes_on_and_off_and_every_repeat_is_success(rig: &mut dyn Rig) {
    let backend = rig.backend();
    let spec = cloned(backend, 1000).await;
    for _ in 0..2 {
        for _ in 0..2 {
            backend
                .power_on(spec.vmid, &spec.stamp, no_cable())
                .await
                .unwrap();
            assert_eq!(power(backend, spec.vmid).await, Some(Power::Running));
        }
        backend.configure(spec.vmid, &spec.stamp, &shape()).await.unwrap();
        let another = Shape { cores: 2, ..shape() };
        let answer = backend.configure(spec.vmid, &spec.stamp, &another).await;
        assert!(matches!(answer, Err(BackendError::Refused { .. })), "{answer:?}");
        for _ in 0..2 {
            backend.power_off(spec.vmid, &spec.stamp).await.unwrap();
            assert_eq!(power(backend, spec.vmid).await, Some(Power::Stopped));
        }
    }
}

pub(crate) async fn a_machine_that_is_shut_down_is_off_whatever_its_guest_does(rig: &mut dyn Rig) {
    let backend = rig.backend();
    let spec = running(backend, 1000).await;
    for _ in 0..2 {
        let patience = Duration::from_secs(1);
        backend.shut_down(spec.vmid, &spec.stamp, patience).await.unwrap();
        assert_eq!(power(backend, spec.vmid).await, Some(Power::Stopped));
    }
    let answer = backend
        .shut_down(spec.vmid, &stamp(), Duration::from_secs(1))
        .await;
    assert!(matches!(answer, Err(BackendError::NotOurs { .. })), "{answer:?}");
    backend
        .shut_down(vmid(1001), &spec.stamp, Duration::from_secs(1))
        .await
        .unwrap();
}

pub(crate) async fn a_suspended_machine_stays_where_it_is_until_resumed(rig: &mut dyn Rig) {
    let backend = rig.backend();
    assert!(backend.info().await.unwrap().capabilities.suspend);
    let spec = running(backend, 1000).await;
    for _ in 0..2 {
        backend.suspend(spec.vmid, &spec.stamp).await.unwrap();
        assert_eq!(power(backend, spec.vmid).await, Some(Power::Suspended));
    }
    let answer = backend.power_on(spec.vmid, &spec.stamp, no_cable()).await;
    assert!(matches!(answer, Err(BackendError::Refused { .. })), "{answer:?}");
    for _ in 0..2 {
        backend.resume(spec.vmid, &spec.stamp).await.unwrap();
        assert_eq!(power(backend, spec.vmid).await, Some(Power::Running));
    }
    backend.power_off(spec.vmid, &spec.stamp).await.unwrap();
    for answer in [
        backend.suspend(spec.vmid, &spec.stamp).await,
        backend.resume(spec.vmid, &spec.stamp).await,
    ] {
        assert!(matches!(answer, Err(BackendError::Refused { .. })), "{answer:?}");
    }
}

pub(crate) async fn a_machine_that_ends_without_us_is_stopped_and_whoever_waits_learns_it(rig: &mut dyn Rig) {
    let backend = rig.backend();
    let spec = running(backend, 1000).await;
    let waiting = timeout(SOON, backend.stopped(spec.vmid));
    let fate = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        rig.kill_from_outside(spec.vmid).await;
    };
    let (waited, ()) = tokio::join!(waiting, fate);
    waited.expect("the machine ended and nobody was told").unwrap();
    assert_eq!(power(backend, spec.vmid).await, Some(Power::Stopped));
    timeout(SOON, backend.stopped(spec.vmid)).await.unwrap().unwrap();
    backend
        .power_on(spec.vmid, &spec.stamp, no_cable())
        .await
        .unwrap();
    assert_eq!(power(backend, spec.vmid).await, Some(Power::Running));
}
