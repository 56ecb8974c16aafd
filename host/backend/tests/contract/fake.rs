//! The fake as the suite sees it.

use agentlab_api::Vmid;
use agentlab_backend::fake::Fake;
use agentlab_backend::{Backend, Template};
use async_trait::async_trait;

use crate::suite::{HELLO, Rig, TEMPLATE};

pub(crate) struct FakeRig(Fake);

impl FakeRig {
    pub(crate) fn open() -> std::future::Ready<Option<Self>> {
        let fake = Fake::new();
        let vmid = TEMPLATE.try_into().unwrap();
        fake.add_template(Template {
            name: "tiny".into(),
            vmid,
            id: "tiny".into(),
            runner_version: Some("0.1.0".into()),
        });
        std::future::ready(Some(Self(fake)))
    }
}

#[async_trait]
impl Rig for FakeRig {
    fn backend(&self) -> &dyn Backend {
        &self.0
    }

    async fn restart(&mut self) {
        self.0 = self.0.clone();
    }

    async fn kill_from_outside(&self, vmid: Vmid) {
        self.0.stop(vmid);
    }

    async fn await_hello(&self, vmid: Vmid) {
        self.0.print(vmid, HELLO);
    }

    async fn remove_template(&self) {
        self.0.remove_template(TEMPLATE.try_into().unwrap());
    }

    fn leftovers(&self) -> Vec<String> {
        self.0.leftovers()
    }
}
