//! What the traits promise of volumes beyond who has them: whose they are, and states of them.

use agentlab_backend::{Backend, BackendError, Power};

use crate::suite::{Rig, cloned, power, vmid};

/// Every back end here has them; a genuine node may have been given no number that owns volumes.
async fn has_volumes(backend: &dyn Backend) -> bool {
    backend.info().await.unwrap().capabilities.volumes
}

/// Names that would be somebody else's, or lead elsewhere.
pub(crate) async fn a_volume_of_somebody_else_is_never_touched(rig: &mut dyn Rig) {
    if !has_volumes(rig.backend()).await {
        return;
    }
    let backend = rig.backend();
    let spec = cloned(backend, 1000).await;
    for name in ["../vm/1000", "local:9000/base-9000-disk-0.qcow2", "", "a b"] {
        assert!(backend.create_volume(name, 1).await.is_err(), "{name:?}");
        assert!(backend.destroy_volume(name).await.is_err(), "{name:?}");
        let answer = backend.attach_volume(name, spec.vmid, &spec.stamp).await;
        assert!(answer.is_err(), "{name:?}");
    }
    assert_eq!(power(backend, vmid(1000)).await, Some(Power::Stopped));
}

pub(crate) async fn a_state_of_a_volume_is_kept_or_said_to_be_out_of_reach(rig: &mut dyn Rig) {
    if !has_volumes(rig.backend()).await {
        return;
    }
    let backend = rig.backend();
    let volume = backend.create_volume("ws-states", 1).await.unwrap();
    match backend.take_volume_snapshot(&volume, "one").await {
        Ok(()) => {
            backend.take_volume_snapshot(&volume, "one").await.unwrap();
            backend.roll_back_volume(&volume, "one").await.unwrap();
            let copy = backend
                .copy_volume(&volume, Some("one"), "ws-copy")
                .await
                .unwrap();
            let again = backend
                .copy_volume(&volume, Some("one"), "ws-copy")
                .await
                .unwrap();
            assert_eq!(copy, again);
            assert!(backend.roll_back_volume(&volume, "absent").await.is_err());
            for _ in 0..2 {
                backend.delete_volume_snapshot(&volume, "one").await.unwrap();
            }
            backend.destroy_volume(&copy).await.unwrap();
        }
        Err(error) => {
            assert!(matches!(error, BackendError::Unsupported { .. }), "{error}");
            let copy = backend.copy_volume(&volume, None, "ws-copy").await;
            assert!(matches!(copy, Err(BackendError::Unsupported { .. })), "{copy:?}");
        }
    }
    backend.destroy_volume(&volume).await.unwrap();
}
