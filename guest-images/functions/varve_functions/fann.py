"""What recognition and its training need of FANN, the Fast Artificial Neural Network library, in C."""

import ctypes

_FLOATS = ctypes.POINTER(ctypes.c_float)
_library = ctypes.CDLL("libfloatfann.so.2")
_library.fann_create_standard_array.restype = ctypes.c_void_p
_library.fann_create_from_file.restype = ctypes.c_void_p
_library.fann_create_train.restype = ctypes.c_void_p
_library.fann_run.restype = _FLOATS
_library.fann_train_epoch.restype = ctypes.c_float

# FANN_SIGMOID to learn with; FANN_SIGMOID_STEPWISE, straight pieces instead of exp(), for use.
_SIGMOID, _STEPWISE = 3, 4


class _TrainData(ctypes.Structure):
    """struct fann_train_data, as far as it is used here."""

    _fields_ = [("errno", ctypes.c_int), ("log", ctypes.c_void_p), ("message", ctypes.c_char_p),
                ("count", ctypes.c_uint), ("inputs", ctypes.c_uint), ("outputs", ctypes.c_uint),
                ("input", ctypes.POINTER(_FLOATS)), ("output", ctypes.POINTER(_FLOATS))]


class Network:
    """A network of fully connected layers."""

    def __init__(self, handle, inputs, outputs):
        self._handle = ctypes.c_void_p(handle)
        self._inputs = inputs
        self._outputs = outputs

    @classmethod
    def load(cls, path, inputs, outputs):
        handle = _library.fann_create_from_file(str(path).encode())
        if not handle:
            raise RuntimeError(f"there is no network in {path}")
        return cls(handle, inputs, outputs)

    @classmethod
    def train(cls, layers, samples, epochs):
        """A network of `layers` nodes, trained with pairs of inputs and outputs."""
        sizes = (ctypes.c_uint * len(layers))(*layers)
        network = cls(_library.fann_create_standard_array(len(layers), sizes), layers[0], layers[-1])
        network._activate(_SIGMOID)
        # Weights are drawn with the C library's rand(), which FANN seeds with the time.
        ctypes.CDLL(None).srand(1)
        _library.fann_randomize_weights(network._handle, ctypes.c_float(-0.1), ctypes.c_float(0.1))
        data = ctypes.c_void_p(_library.fann_create_train(len(samples), layers[0], layers[-1]))
        table = ctypes.cast(data, ctypes.POINTER(_TrainData)).contents
        for number, (inputs, outputs) in enumerate(samples):
            ctypes.memmove(table.input[number], (ctypes.c_float * layers[0])(*inputs), 4 * layers[0])
            ctypes.memmove(table.output[number], (ctypes.c_float * layers[-1])(*outputs), 4 * layers[-1])
        for _ in range(epochs):
            _library.fann_train_epoch(network._handle, data)
        network._activate(_STEPWISE)
        return network

    def _activate(self, function):
        _library.fann_set_activation_function_hidden(self._handle, function)
        _library.fann_set_activation_function_output(self._handle, function)

    def save(self, path):
        if _library.fann_save(self._handle, str(path).encode()) != 0:
            raise RuntimeError(f"cannot save the network to {path}")

    def run(self, inputs):
        """The outputs for one input, a sequence of floats."""
        return _library.fann_run(self._handle, (ctypes.c_float * self._inputs)(*inputs))[:self._outputs]
