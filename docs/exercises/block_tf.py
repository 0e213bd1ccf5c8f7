import tensorflow as tf

from resnet_tf import Residual

X = tf.random.normal((4, 6, 6, 3))  # images, height, width, channels
print(Residual(3)(X).shape)
print(Residual(6, use_1x1conv=True, strides=2)(X).shape)
