use agentlab_api::{ErrorCode, JobId, Profile, SandboxId, SandboxState, Vmid};
use agentlab_store::SandboxRecord;
use jiff::Timestamp;
use proptest::prelude::*;

use super::*;

pub(crate) fn record() -> SandboxRecord {
    let profile: Profile =
        serde_json::from_value(serde_json::json!({"name": "demo", "template_vmid": 9000})).unwrap();
    SandboxRecord {
        id: SandboxId::from_bytes([7; 16]),
        vmid: Vmid::try_from(1000).unwrap(),
        name: "one".into(),
        profile,
        state: SandboxState::Requested,
        cursor: "Reserve".into(),
        unwinding: false,
        nonce: "0".repeat(32),
        mac: [2, 0xa1, 0, 0, 0, 1],
        address: "10.77.0.2".parse().unwrap(),
        job: None,
        workspace: None,
        keepalive: false,
        lease_expires_at: None,
        lease_warned: false,
        runner_key_sha256: None,
        acknowledged: false,
        runner_version: None,
        channel: None,
        last_heard_at: None,
        powered_on_at: None,
        paused_at: None,
        idle: None,
        failure: None,
        left_behind: vec![],
        created_at: Timestamp::UNIX_EPOCH,
        updated_at: Timestamp::UNIX_EPOCH,
    }
}

fn cause() -> Failure {
    Failure {
        code: ErrorCode::Internal,
        stage: "Clone".into(),
        message: "x".into(),
        hint: None,
    }
}

fn job() -> JobId {
    "job_0123456789ab".parse().unwrap()
}

fn any_step() -> impl Strategy<Value = Step> {
    prop::sample::select(Step::ALL.to_vec())
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        any_step().prop_map(Event::StepDone),
        Just(Event::VmidTaken),
        Just(Event::StepFailed(cause())),
        Just(Event::StartFailed),
        Just(Event::GuestUp(Some(job()))),
        Just(Event::GuestUp(None)),
        Just(Event::GuestLost(cause())),
        Just(Event::JobEnded),
        Just(Event::LeaseExpired),
        Just(Event::MachineStopped(cause())),
        Just(Event::MachineGone(cause())),
        Just(Event::Unwound),
    ]
}

fn any_request() -> impl Strategy<Value = Request> {
    prop_oneof![
        Just(Request::Start),
        Just(Request::Stop),
        Just(Request::Suspend),
        Just(Request::Resume),
        Just(Request::Assign(job())),
        Just(Request::Renew { minutes: 60 }),
        any::<bool>().prop_map(|force| Request::Destroy { force }),
    ]
}

#[derive(Debug, Clone)]
enum Input {
    Event(Event, bool),
    Request(Request),
}

fn any_input() -> impl Strategy<Value = Input> {
    prop_oneof![
        4 => (any_event(), any::<bool>()).prop_map(|(event, keep)| Input::Event(event, keep)),
        // Without these most walks would never leave the first step.
        4 => any_step().prop_map(|step| Input::Event(Event::StepDone(step), false)),
        1 => any_request().prop_map(Input::Request),
    ]
}

fn apply(state: &State, input: &Input) -> Option<Transition> {
    match input {
        Input::Event(event, keep) => state.event(event, *keep),
        Input::Request(request) => match state.request(request) {
            Verdict::Moved(transition) => Some(transition),
            Verdict::AlreadySo | Verdict::Refused(_) => None,
        },
    }
}

fn every_state() -> Vec<State> {
    let mut states: Vec<State> = Step::ALL
        .into_iter()
        .map(|at| State::Provisioning { at })
        .collect();
    states.extend([
        State::Requested,
        State::Booting,
        State::Ready,
        State::Running {
            holder: Holder::Operator,
        },
        State::Running {
            holder: Holder::Job(job()),
        },
        State::Suspended {
            holder: Holder::Operator,
        },
        State::Suspended {
            holder: Holder::Job(job()),
        },
        State::Stopped,
        State::TimedOut,
        State::Unwinding {
            shown: SandboxState::Failed,
            cause: Some(cause()),
        },
        State::Unwinding {
            shown: SandboxState::Timeout,
            cause: None,
        },
        State::Failed {
            cause: cause(),
            kept: true,
        },
        State::Failed {
            cause: cause(),
            kept: false,
        },
        State::Destroyed,
    ]);
    states
}

proptest! {
    #[test]
    fn no_event_and_no_request_ever_leaves_destroyed(input in any_input()) {
        prop_assert_eq!(apply(&State::Destroyed, &input), None);
    }

    #[test]
    fn trust_beyond_the_bootstrap_port_never_rises_without_guest_up(
        inputs in prop::collection::vec(any_input(), 1..60),
        mode in prop::sample::select(vec![NetworkMode::Off, NetworkMode::Nat, NetworkMode::Allowlist]),
    ) {
        let mut state = State::Requested;
        for input in inputs {
            let Some(transition) = apply(&state, &input) else { continue };
            let (before, after) = (state.trust(mode), transition.next.trust(mode));
            if after > before && after > Trust::BootstrapOnly {
                prop_assert!(matches!(input, Input::Event(Event::GuestUp(_), _)), "{:?} in {:?}", input, state);
            }
            state = transition.next;
        }
    }

    #[test]
    fn what_is_recorded_is_what_is_read_back(inputs in prop::collection::vec(any_input(), 1..60)) {
        let mut record = record();
        let mut state = State::Requested;
        state.write_to(&mut record);
        for input in inputs {
            let Some(transition) = apply(&state, &input) else { continue };
            state = transition.next;
            state.write_to(&mut record);
            let read = State::of(&record);
            prop_assert_eq!(&read, &state);
            prop_assert_eq!(read.effects(), transition.effects);
        }
    }

    #[test]
    fn unwinding_never_goes_back(inputs in prop::collection::vec(any_input(), 1..80)) {
        let mut record = record();
        let mut state = State::Requested;
        for input in inputs {
            let was = record.unwinding;
            let Some(transition) = apply(&state, &input) else { continue };
            state = transition.next;
            state.write_to(&mut record);
            prop_assert!(record.unwinding || !was, "{:?}", state);
            prop_assert!(!was || !state.is_up());
        }
    }
}

#[test]
fn every_state_reaches_destroyed_by_destroy() {
    for state in every_state() {
        let next = match state.request(&Request::Destroy { force: true }) {
            Verdict::Moved(transition) => transition.next,
            Verdict::AlreadySo => state.clone(),
            Verdict::Refused(refusal) => panic!("{state:?}: {refusal}"),
        };
        let end = match next {
            State::Destroyed => next,
            unwinding => unwinding.event(&Event::Unwound, false).unwrap().next,
        };
        assert_eq!(end, State::Destroyed, "{state:?}");
    }
}

#[test]
fn destroy_is_safe_to_repeat() {
    for state in every_state() {
        if let Verdict::Moved(transition) = state.request(&Request::Destroy { force: true }) {
            assert_eq!(
                transition.next.request(&Request::Destroy { force: true }),
                Verdict::AlreadySo,
                "{state:?}"
            );
        }
    }
}

#[test]
fn destroy_while_being_made_cancels_and_undoes() {
    for at in Step::ALL {
        let Verdict::Moved(transition) =
            (State::Provisioning { at }).request(&Request::Destroy { force: false })
        else {
            panic!("refused at {at}");
        };
        assert_eq!(transition.effects, [Effect::Unwind]);
        assert_eq!(
            transition.next.event(&Event::StepDone(at), false),
            None,
            "a late answer at {at}"
        );
        assert_eq!(
            transition.next.event(&Event::GuestUp(Some(job())), false),
            None,
            "a late guest at {at}"
        );
    }
}

#[test]
fn the_table_of_requests_is_kept() {
    let cells: [(State, [&str; 6]); 10] = [
        (
            State::Requested,
            ["refused", "refused", "refused", "refused", "refused", "moved"],
        ),
        (
            State::Provisioning { at: Step::Clone },
            ["same", "refused", "refused", "refused", "refused", "moved"],
        ),
        (
            State::Booting,
            ["same", "refused", "refused", "refused", "refused", "moved"],
        ),
        (
            State::Ready,
            ["same", "moved", "refused", "same", "moved", "moved"],
        ),
        (
            State::Running {
                holder: Holder::Operator,
            },
            ["same", "moved", "moved", "same", "moved", "moved"],
        ),
        (
            State::Suspended {
                holder: Holder::Operator,
            },
            ["refused", "refused", "same", "moved", "moved", "moved"],
        ),
        (
            State::Stopped,
            ["moved", "same", "refused", "refused", "moved", "moved"],
        ),
        (
            State::TimedOut,
            ["refused", "refused", "refused", "refused", "refused", "refused"],
        ),
        (
            State::Failed {
                cause: cause(),
                kept: true,
            },
            ["refused", "refused", "refused", "refused", "refused", "moved"],
        ),
        (
            State::Destroyed,
            ["refused", "refused", "refused", "refused", "refused", "same"],
        ),
    ];
    let requests = [
        Request::Start,
        Request::Stop,
        Request::Suspend,
        Request::Resume,
        Request::Renew { minutes: 60 },
        Request::Destroy { force: false },
    ];
    for (state, row) in cells {
        for (request, expected) in requests.iter().zip(row) {
            let found = match state.request(request) {
                Verdict::Moved(_) => "moved",
                Verdict::AlreadySo => "same",
                Verdict::Refused(refusal) => {
                    let offers = refusal.offers();
                    assert!(
                        offers.contains(&"show")
                            && offers.iter().all(|offer| refusal.allowed.contains(offer))
                            && !offers.contains(&"ssh"),
                        "{offers:?}"
                    );
                    "refused"
                }
            };
            assert_eq!(found, expected, "{request:?} in {state:?}");
        }
    }
}

#[test]
fn every_power_on_of_ours_comes_with_a_new_token() {
    let Verdict::Moved(transition) = State::Stopped.request(&Request::Start) else {
        panic!("refused")
    };
    assert_eq!(transition.effects, [Effect::Run(Step::IssueToken)]);
}

#[test]
fn what_fails_to_start_again_keeps_its_disk() {
    for state in every_state() {
        let next = state
            .event(&Event::StartFailed, false)
            .map(|transition| transition.next);
        let starting = matches!(state, State::Provisioning { .. } | State::Booting);
        assert_eq!(next, starting.then_some(State::Stopped), "{state:?}");
    }
}
