"""What the page and its event stream cost: a synthetic fleet, viewers, and a browser that is measured."""
