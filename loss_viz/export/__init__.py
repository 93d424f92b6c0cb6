"""Files to share: HTML pages, images, videos."""
