# The log names the image, which has since been overwritten by sync epochs of a
# later session: it is no state that the guest was in.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> log out-of-sync
> hello 1 2
    welcome at epoch 2
> sync 3
    commit
> lost
> log in-sync 2
> wait 1s
