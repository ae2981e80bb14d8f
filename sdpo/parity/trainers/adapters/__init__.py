"""What an audit must know of a trainer: one small file per trainer."""
