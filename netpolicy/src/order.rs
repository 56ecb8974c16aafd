//! What an operator asks of the policy while a daemon is its one writer: words for both ends of the control socket.

use serde::{Deserialize, Serialize};

use crate::{Drift, GuestPort, HostPolicy, IfName, Trust};

/// Where orders are sent to, with the method POST.
pub const ORDER_PATH: &str = "/v1/network";

/// One order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "order", deny_unknown_fields)]
pub enum Order {
    /// Bind a port that the hypervisor made or will make.
    Bind {
        /// As it shall be from now on, whatever it was before.
        port: GuestPort,
    },
    /// Forget a port: it passes nothing any more.
    Unbind {
        /// Its name.
        name: IfName,
    },
    /// Change what a bound port may pass.
    Trust {
        /// Its name.
        name: IfName,
        /// From now on.
        trust: Trust,
    },
    /// Read back, repair, report.
    Verify,
    /// Take all trust from every port.
    Seal,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// What had to be repaired.
    pub drift: Vec<Drift>,
    /// Ports that are bound now.
    pub ports: usize,
    /// The policy that stands.
    pub policy: HostPolicy,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_reads_as_it_is_written_and_nothing_is_added_to_it() {
        let written = r#"{"order":"trust","name":"tap1000i0","trust":{"mode":"nat"}}"#;
        let order = Order::Trust {
            name: "tap1000i0".parse().unwrap(),
            trust: Trust::Nat,
        };
        assert_eq!(serde_json::to_string(&order).unwrap(), written);
        assert_eq!(serde_json::from_str::<Order>(written).unwrap(), order);
        for bad in [
            r#"{"order":"trust","name":"tap1000i0"}"#,
            r#"{"order":"trust","name":"tap*","trust":{"mode":"nat"}}"#,
            r#"{"order":"trust","name":"tap1000i0","trust":{"mode":"open"}}"#,
            r#"{"order":"open"}"#,
        ] {
            assert!(serde_json::from_str::<Order>(bad).is_err(), "{bad}");
        }
    }
}
