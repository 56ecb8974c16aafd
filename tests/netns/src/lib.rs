//! A host, its guests and the world around it, in network namespaces that this process makes and that vanish with it.
//!
//! ```text
//!        net: 192.168.1.1 gateway, 192.168.1.20 LAN, 1.1.1.1 and 8.8.8.8 Internet, 10.200.0.5 and other private ones
//!         │
//!       vmbr0 192.168.1.10, 5.5.5.5 ── host ── vmbr2 6.6.6.1 ┐
//!                                       │ ├─── docker0 172.17.0.1 ├── other: 6.6.6.6, 172.17.0.5, 100.100.0.9
//!                                       │ └─── tail0 100.100.0.1 ┘
//!                                     vmbr1 10.77.0.1
//!                     ┌─────────────────┼─────────────────┐
//!               tap1000i0 (a)     tap1001i0 (b)     tap1002i0 (stranger: on the bridge, bound by nobody)
//! ```

pub mod ears;
pub mod frame;
pub mod guest;
pub mod lab;
pub mod namespace;
