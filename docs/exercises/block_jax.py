import jax

from resnet_jax import Residual

X = jax.random.normal(jax.random.key(0), (4, 6, 6, 3))  # images, height, width, channels
for block in (Residual(3), Residual(6, use_1x1conv=True, strides=2)):
    Y, variables = block.init_with_output(jax.random.key(1), X)  # parameters lie outside the block
    print(Y.shape)
