"""What the seven experiments share. Import it before TensorFlow."""
import os

# Where stdin, stdout or stderr is closed, the next file that is opened would take its number, and what TensorFlow
# writes to stderr.
while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
    pass
os.close(descriptor)

# Without a GPU, soft placement makes TensorFlow print some 20 lines of warnings for each variable.
# It reads this when it is imported; 2 leaves errors.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
