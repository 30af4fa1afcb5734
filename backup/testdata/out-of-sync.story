# The log does not name the image: however long the primary is silent, the
# backup does not ask (guarantee 6).
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> log out-of-sync
> lost
> wait 10s
