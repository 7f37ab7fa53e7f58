use std::time::Duration;

use super::events::RateLimit;

#[tokio::test(start_paused = true)]
async fn a_flood_of_denials_is_logged_in_part() {
    let mut limit = RateLimit::new(2);
    assert_eq!([limit.allows(), limit.allows(), limit.allows()], [true, true, false]);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(limit.allows());
}
