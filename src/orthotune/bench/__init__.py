"""The one harness: adapted models beside the frozen one, in time, in bytes and in calls."""
