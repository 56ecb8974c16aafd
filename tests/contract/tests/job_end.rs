//! job_end
