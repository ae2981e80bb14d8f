"""Stand-in for the fork's package: batches of named tensors."""


class DataProto:
    """Tensors and objects of a batch."""

    def __init__(self, batch, non_tensor_batch=None, meta_info=None):
        self.batch, self.meta_info = batch, meta_info or {}
        self.non_tensor_batch = non_tensor_batch or {}

    @classmethod
    def from_dict(cls, tensors, non_tensors=None, meta_info=None):
        return cls(dict(tensors), non_tensors, meta_info)
