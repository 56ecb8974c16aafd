//! Many at once, on a node where everything works and every lock is real.

use agentlab_api::JobState;

use super::{Schedule, Version};

#[test]
fn a_hundred_jobs_asked_for_at_once_all_complete_and_no_lock_is_mentioned() {
    let schedule = Schedule::fair(Version::V9, 100);
    schedule.live();
    let jobs = schedule.jobs.borrow();
    assert_eq!(jobs.len(), 100);
    for job in jobs.iter().flatten() {
        assert_eq!(job.state, JobState::Completed, "{job:#?}");
    }
}
